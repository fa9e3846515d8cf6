"""Checkpoint folders: a trained network, its description, its scores, and the state to resume training from.

    <uri>/config.json         architecture, input size, recipe, data fingerprint
    <uri>/model.safetensors   weights
    <uri>/train_state.pt      optimizer, epochs and steps done; read by training only, without unpickling objects
    <uri>/metrics.json        scores; written last, so that a folder that has it is complete

The identity of a model is the SHA-256 of config.json followed by model.safetensors.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from matting.nn.unet import UNet, UNetConfig
from matting.storage import store
from matting.storage.uri import join_uri

CHECKPOINT_FORMAT = 2

Aspects = tuple[float, float]  # smallest and largest aspect ratio (width / height) of photos, outliers left out


class CheckpointError(Exception):
    """The folder is not a checkpoint, incomplete or damaged. The message says what was found and what was expected."""


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint folder, without the training state.

    Args:
        model: Trained network, on the CPU and in eval mode.
        size: Side in pixels of the square input at the end of training.
        config: Contents of config.json.
        metrics: Contents of metrics.json: means of the metrics over the validation split.
        identity: SHA-256 of config.json followed by model.safetensors, in hexadecimal.
    """

    model: UNet
    size: int
    config: dict[str, Any]
    metrics: dict[str, float]
    identity: str

    @property
    def aspects(self) -> Aspects | None:
        """Smallest and largest aspect ratio of the training photos; None if config.json has none."""
        return _aspects(self.config)


def describe(model: UNet, size: int, recipe: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of config.json.

    Args:
        model: Network, for its architecture.
        size: Side in pixels of its square input.
        recipe: Name and options of the training.
        data: Where the training data was and its fingerprints; "aspects" is optional.
    """
    return {
        "format": CHECKPOINT_FORMAT,
        "model": asdict(model.config),
        "size": size,
        "recipe": dict(recipe),
        "data": dict(data),
    }


def encode(
    model: UNet,
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    train_state: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Return the files of a checkpoint folder by name, in the order in which to write them.

    Args:
        model: Network whose weights are written.
        config: Result of :func:`describe`.
        metrics: Contents of metrics.json.
        train_state: State to resume training from, of tensors, numbers and strings; or None.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files = {"model.safetensors": save_tensors(weights), "config.json": _to_json(config)}
    if train_state is not None:
        buffer = io.BytesIO()
        torch.save(dict(train_state), buffer)
        files["train_state.pt"] = buffer.getvalue()
    return {**files, "metrics.json": _to_json(metrics)}


def save(
    uri: str,
    model: UNet,
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    train_state: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder. Arguments after the folder's URI are those of :func:`encode`.

    Raises:
        StorageError: The folder cannot be written.
    """
    for name, data in encode(model, config, metrics, train_state).items():
        store.write_bytes(join_uri(uri, name), data)


def load(uri: str) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: A file is missing or damaged, the format is another, or the weights do not fit the network
            that config.json describes.
        StorageError: The folder cannot be read.
    """
    missing = [
        name for name in ("config.json", "model.safetensors", "metrics.json") if not store.exists(join_uri(uri, name))
    ]
    if missing:
        raise CheckpointError(
            f"{uri} is not a whole checkpoint folder: {', '.join(missing)} missing. "
            "Give a folder that training wrote, such as <output>/<name>/best."
        )
    config_bytes = store.read_bytes(join_uri(uri, "config.json"))
    weights_bytes = store.read_bytes(join_uri(uri, "model.safetensors"))
    try:
        config = json.loads(config_bytes)
        if config["format"] != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{uri} has checkpoint format {config['format']}; this version reads format {CHECKPOINT_FORMAT} only. "
                "Train again with this version, or use the version that wrote the checkpoint."
            )
        model = UNet(UNetConfig(**config["model"]))
        model.load_state_dict(load_tensors(weights_bytes))
        size = int(config["size"])
        _aspects(config)  # raises here, not at the first use, if they are damaged
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{uri} is damaged or not ours: config.json and model.safetensors do not describe one network ({error})."
        ) from error
    try:
        metrics = json.loads(store.read_bytes(join_uri(uri, "metrics.json")))
    except ValueError as error:
        raise CheckpointError(f"{uri}/metrics.json is damaged ({error}).") from error
    identity = hashlib.sha256(config_bytes + weights_bytes).hexdigest()
    return Checkpoint(model.eval(), size, config, metrics, identity)


def read_files(uri: str) -> dict[str, bytes]:
    """Return the files of a checkpoint folder with its training state, by name.

    Returns:
        Contents, in the order in which to write a copy: metrics.json, which marks it as complete, is last.

    Raises:
        StorageError: A file cannot be read.
    """
    names = ("model.safetensors", "config.json", "train_state.pt", "metrics.json")
    return {name: store.read_bytes(join_uri(uri, name)) for name in names}


def load_train_state(uri: str) -> dict[str, Any]:
    """Read the training state of a checkpoint folder: tensors, numbers and strings; no other object is unpickled.

    Raises:
        CheckpointError: The file holds anything else, or is damaged.
        NotFoundError: The checkpoint has no training state.
        StorageError: The file cannot be read.
    """
    data = store.read_bytes(join_uri(uri, "train_state.pt"))
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise exceptions of any type
        raise CheckpointError(f"{uri}/train_state.pt is damaged or holds more than tensors ({error}).") from error
    return state


def _aspects(config: Mapping[str, Any]) -> Aspects | None:
    """Return the aspect ratios in config.json, or None.

    Raises:
        ValueError, TypeError, AttributeError: They are not two increasing positive numbers.
    """
    found = config.get("data", {}).get("aspects")
    if not found:
        return None
    tallest, widest = map(float, found)
    if not 0 < tallest <= widest:
        raise ValueError(f"aspects {found}")
    return tallest, widest


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(value), indent=2, sort_keys=True) + "\n").encode()

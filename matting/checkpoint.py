"""The checkpoint folder: a trained network, what it is, how it scored, and how to go on training it.

    <uri>/config.json         model, input size, recipe, data fingerprint
    <uri>/model.safetensors   the weights
    <uri>/train_state.pt      optimizer, epoch, step; only training opens it, and never by unpickling objects
    <uri>/metrics.json        how it scored; written last, so a folder that has it is whole

A model's identity is the SHA-256 of config.json followed by model.safetensors. This file knows no training loop.
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

from matting import storage
from matting.unet import UNet, UNetConfig

FORMAT = 1

Aspects = tuple[float, float]  # of photos, width over height: of the tallest and of the widest, but for a few


class CheckpointError(Exception):
    """A folder that is not a checkpoint of ours, or not a whole one. The message says what was found and expected."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds, apart from the training state."""

    model: UNet  # on the CPU, in eval mode
    size: int  # pixels a side of the square input that its training ended with
    config: dict[str, Any]
    metrics: dict[str, float]
    identity: str

    @property
    def aspects(self) -> Aspects | None:
        """Of the photos that it was trained on; None if it does not say."""
        return _aspects(self.config)


def describe(model: UNet, size: int, recipe: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "format": FORMAT,
        "model": asdict(model.config),
        "size": size,
        "recipe": dict(recipe),
        "data": dict(data),
    }


def save(
    uri: str,
    model: UNet,
    config: Mapping[str, Any],
    metrics: Mapping[str, float],
    train_state: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder; ``config`` comes from :func:`describe`.

    Raises:
        storage.StorageError: the folder cannot be written.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    storage.write_bytes(storage.join(uri, "model.safetensors"), save_tensors(weights))
    storage.write_bytes(storage.join(uri, "config.json"), _to_json(config))
    if train_state is not None:
        buffer = io.BytesIO()
        torch.save(dict(train_state), buffer)
        storage.write_bytes(storage.join(uri, "train_state.pt"), buffer.getvalue())
    storage.write_bytes(storage.join(uri, "metrics.json"), _to_json(metrics))


def load(uri: str) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: something is missing, of another format, or the weights do not fit the described network.
        storage.StorageError: the folder cannot be read.
    """
    missing = [
        name
        for name in ("config.json", "model.safetensors", "metrics.json")
        if not storage.exists(storage.join(uri, name))
    ]
    if missing:
        raise CheckpointError(
            f"{uri} is not a whole checkpoint folder: {', '.join(missing)} missing. "
            "Give a folder that training wrote, such as <output>/<name>/best."
        )
    config_bytes = storage.read_bytes(storage.join(uri, "config.json"))
    weights_bytes = storage.read_bytes(storage.join(uri, "model.safetensors"))
    try:
        config = json.loads(config_bytes)
        if config["format"] != FORMAT:
            raise CheckpointError(f"{uri} has checkpoint format {config['format']}; this version reads {FORMAT}.")
        model = UNet(UNetConfig(**config["model"]))
        model.load_state_dict(load_tensors(weights_bytes))
        size = int(config["size"])
        _aspects(config)  # damage is told now, not where they are first asked for
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{uri} is damaged or not ours: config.json and model.safetensors do not describe one network ({error})."
        ) from error
    try:
        metrics = json.loads(storage.read_bytes(storage.join(uri, "metrics.json")))
    except ValueError as error:
        raise CheckpointError(f"{uri}/metrics.json is damaged ({error}).") from error
    identity = hashlib.sha256(config_bytes + weights_bytes).hexdigest()
    return Checkpoint(model.eval(), size, config, metrics, identity)


def copy(source: str, target: str) -> None:
    """Copy a checkpoint folder, the file that makes it whole last.

    Raises:
        storage.StorageError: one of the folders cannot be read or written.
    """
    for name in ("model.safetensors", "config.json", "train_state.pt", "metrics.json"):
        storage.write_bytes(storage.join(target, name), storage.read_bytes(storage.join(source, name)))


def load_train_state(uri: str) -> dict[str, Any]:
    """The training state beside the weights: tensors, numbers and strings only; no object is ever unpickled.

    Raises:
        CheckpointError: it holds anything else, or is damaged.
    """
    data = storage.read_bytes(storage.join(uri, "train_state.pt"))
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of any type, when the bytes are a stranger's
        raise CheckpointError(f"{uri}/train_state.pt is damaged or holds more than tensors ({error}).") from error
    return state


def _aspects(config: Mapping[str, Any]) -> Aspects | None:
    found = config.get("data", {}).get("aspects")
    if not found:
        return None
    tallest, widest = map(float, found)
    if not 0 < tallest <= widest:
        raise ValueError(f"aspects {found}")
    return tallest, widest


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(dict(value), indent=2, sort_keys=True) + "\n").encode()

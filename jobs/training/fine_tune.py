"""Fine-tuning: the checkpoint that `train --init` begins with.

    network_arguments   URI                   -> options that the checkpoint sets
    load_start          URI, network's config -> Start: weights, URI and identity, or an error that names the layers

Knows no workers and no run folder.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from jobs.common.config import ConfigError, dash_name
from matting.messages import first_few
from matting.nn import checkpoint
from matting.nn.unet import UNet, UNetConfig
from matting.storage.uri import absolute_uri

LEARNING_RATE = 2e-4  # default of fine-tuning: a tenth of the default recipe's


@dataclass(frozen=True)
class Start:
    """Checkpoint that a fine-tuning begins with.

    Args:
        uri: URI of the checkpoint folder.
        identity: SHA-256 of its config.json followed by its model.safetensors, in hexadecimal.
        weights: Weights and buffers of its network, by name: the averaged ones, if it was trained with an EMA.
    """

    uri: str
    identity: str
    weights: Mapping[str, Tensor]

    def record(self) -> dict[str, str]:
        """Return what config.json holds about the start: URI and identity."""
        return {"uri": self.uri, "identity": self.identity}


def network_arguments(uri: str) -> list[str]:
    """Return the command-line options that a checkpoint presets: network, image size, learning rate of fine-tuning.

    Raises:
        CheckpointError: The folder is not a checkpoint, incomplete or damaged.
        StorageError: The folder cannot be read.
    """
    found = checkpoint.load(absolute_uri(uri))
    values = {**asdict(found.model.config), "size": found.size, "learning_rate": LEARNING_RATE}
    return [f"--{name}={value}" for name, value in values.items()]


def load_start(uri: str | None, network: UNetConfig) -> Start | None:
    """Return the checkpoint to begin with, or None if there is no URI.

    Args:
        uri: URI of the checkpoint folder.
        network: Config of the network to train.

    Raises:
        ConfigError: The checkpoint has another network.
        CheckpointError: The folder is not a checkpoint, incomplete or damaged.
        StorageError: The folder cannot be read.
    """
    if uri is None:
        return None
    found = checkpoint.load(absolute_uri(uri))
    weights = found.model.state_dict()
    has = asdict(found.model.config)
    differing = [
        f"{dash_name(name)} {value}, found {has[name]}" for name, value in asdict(network).items() if value != has[name]
    ]
    if differing:
        layers = differing_layers(weights, expected_weights(network))
        shapes = f" Layers that differ: {first_few(layers)}." if layers else ""
        raise ConfigError(
            f"The network of --init {uri} is another one: expected {', '.join(differing)}.{shapes} "
            "Leave these options out, as --init sets them, or give a checkpoint of that network."
        )
    return Start(absolute_uri(uri), found.identity, weights)


def expected_weights(network: UNetConfig) -> Mapping[str, Tensor]:
    """Return weights and buffers of a network by name, without memory for their values."""
    with torch.device("meta"):
        return UNet(network).state_dict()


def differing_layers(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence part for each layer that is missing on one side, or has two shapes; found first, in order."""
    names = dict.fromkeys([*found, *expected])
    shapes = [(name, _shape(found, name), _shape(expected, name)) for name in names]
    return [f"{name} found {one}, expected {other}" for name, one, other in shapes if one != other]


def _shape(weights: Mapping[str, Tensor], name: str) -> str:
    return "×".join(map(str, weights[name].shape)) or "one number" if name in weights else "none"

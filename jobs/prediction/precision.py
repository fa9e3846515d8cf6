"""Number format of the network, decided once for a whole prediction.

    auto                    the fastest format that every node can compute
    fp32, bf16 or int8      that format; an error if some node cannot compute it

Mattes of two formats differ in single pixels, so nodes of one run must not use different ones. The nodes that count are
those that run the network: nodes with GPUs if there are any, else nodes with CPUs.
"""

import os
import platform
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch

from jobs.common import cluster
from jobs.common.cluster import ClusterError
from jobs.common.nodes import ask_nodes, nodes_with
from jobs.prediction.devices import DeviceOption
from matting.messages import first_few
from matting.nn.precision import NumberFormat, supported_formats

PrecisionOption = Literal["auto", "fp32", "bf16", "int8"]
Formats = tuple[NumberFormat, ...]  # of a device, fastest first


class UnsupportedFormatError(Exception):
    """A number format that the network's device cannot compute. The message names both and says what to do."""


def decide_precision(option: PrecisionOption, device: DeviceOption) -> NumberFormat:
    """Return the number format of a prediction.

    For "auto", this joins the cluster of RAY_ADDRESS if there is one; it never starts a cluster. Another option is
    checked only if the job is to run on this machine alone: see :func:`require_precision`.

    Raises:
        ClusterError: This machine cannot compute the format; or the cluster has no node that could run the network, or
            a node does not answer.
    """
    if cluster.is_own():
        formats = formats_here(device)
        if option != "auto":
            check_formats(option, {"this machine": formats})
        return formats[0] if option == "auto" else option
    if option != "auto":
        return option
    cluster.join()
    cluster.require(cpus=1, reading=0, gpus=0, what="Predicting tasks")
    return fastest_common(formats_by_node(device).values())


def require_precision(precision: NumberFormat, device: DeviceOption) -> None:
    """Check that all nodes of the joined cluster that would run the network can compute a format.

    Raises:
        ClusterError: A node cannot, or does not answer.
    """
    check_formats(precision, formats_by_node(device))


def check_formats(precision: NumberFormat, found: Mapping[str, Formats]) -> None:
    """Check that a format is among those of every node, given by the node's name.

    Raises:
        ClusterError: It is not. The message names the nodes and their formats.
    """
    lacking = [
        f"{name} can compute {', '.join(formats)}" for name, formats in found.items() if precision not in formats
    ]
    if lacking:
        raise ClusterError(
            f"--precision {precision} is not possible on every node: {first_few(lacking)}. The fastest format that is "
            f"possible on all is {fastest_common(found.values())}."
        )


def require_format(precision: NumberFormat, device: torch.device) -> None:
    """Check that this process's device can compute a format, in a worker of a node that may have joined late.

    Raises:
        UnsupportedFormatError: It cannot.
    """
    formats = supported_formats(device)
    if precision not in formats:
        raise UnsupportedFormatError(
            f"Node {platform.node()} cannot compute {precision}, in which this run predicts; it can "
            f"compute {', '.join(formats)}. Remove the node, or give --precision {formats[0]}, with which every matte "
            "is made anew."
        )


def formats_here(device: DeviceOption = "auto") -> Formats:
    """Return the formats that this process's device can compute, fastest first: its GPU's, else its CPU's."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return tuple(supported_formats(torch.device("cuda" if on_gpu else "cpu")))


def formats_of_node(device: DeviceOption) -> Formats:
    """Return the formats that this node would predict in: :func:`formats_here`, as a Ray task.

    The task holds no GPU, since another run may hold them all; so Ray hides the node's GPUs from it.
    """
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return formats_here(device)


def formats_by_node(device: DeviceOption) -> dict[str, Formats]:
    """Ask all nodes of the joined cluster that would run the network for the formats that they can compute.

    Returns:
        Formats, fastest first, by the name of the node.

    Raises:
        ClusterError: A node does not answer, and has not gone either.
    """
    with_gpus = [] if device == "cpu" else nodes_with("GPU")
    return ask_nodes(formats_of_node, (device,), with_gpus or nodes_with("CPU"), ends=bool(with_gpus))


def fastest_common(formats: Iterable[Formats]) -> NumberFormat:
    """Return the format that all devices can compute and that stands first in their lists, on average.

    Raises:
        ClusterError: There is no such format.
    """
    lists = list(formats)
    common = [each for each in get_args(NumberFormat) if lists and all(each in found for found in lists)]
    if not common:
        raise ClusterError("No node of the cluster is left to run the network. Run again.")
    return min(common, key=lambda each: sum(found.index(each) for found in lists))

"""GPUs that a job counts on: a process that cannot compute on the GPU that it was promised fails, and says why.

require_gpus   driver: every node with GPUs can compute on them, before work begins
promised_gpu   worker: the GPU that Ray has given to this process
"""

import os

import torch

from jobs.common.cluster import ClusterError
from jobs.common.nodes import ask_nodes, nodes_with
from matting.messages import first_few

CURE = "Install a torch that fits the GPU's driver, remove the node, or give --device cpu."


class NoGpuError(ClusterError):
    """A GPU that Ray counts and torch cannot use. The message says why, and what to do."""


def promised_gpu() -> torch.device:
    """Return the GPU of this process.

    Raises:
        NoGpuError: torch cannot compute on it.
    """
    if problem := gpu_problem():
        raise NoGpuError(f"This process was given a GPU and cannot use it: {problem}. {CURE}")
    return torch.device("cuda", torch.cuda.current_device())  # the one that Ray Train has set


def require_gpus(is_own: bool) -> None:
    """Check that torch can compute on the GPUs that Ray counts.

    Args:
        is_own: Whether the cluster is of this machine alone.

    Raises:
        NoGpuError: It cannot. The message names the nodes.
    """
    found = {"this machine": gpu_problem()} if is_own else ask_nodes(gpu_problem_of_node, (), nodes_with("GPU"), True)
    if problems := [f"{name}: {problem}" for name, problem in found.items() if problem]:
        raise NoGpuError(f"Ray counts GPUs that torch cannot use. {first_few(problems)}. {CURE}")


def gpu_problem() -> str:
    """Return why this process cannot compute on a GPU, or nothing."""
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]  # torch does not annotate it
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.ones(1, device="cuda").sum().item()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return ""


def gpu_problem_of_node() -> str:
    """Return :func:`gpu_problem` for this node, as a Ray task.

    The task holds no GPU, since another job may hold them all; so Ray hides the node's GPUs from it.
    """
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return gpu_problem()

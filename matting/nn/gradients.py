"""The network of a training step, compiled where that pays, and the gradients of its loss.

    image_BCHW -> StepNetwork -> pred_BCHW -> loss -> set_gradients: mean gradients over all workers

Compiled or not, a network computes the same up to rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from matting.nn.distributed import average_over_workers

Compile = Literal["auto", "off"]


class StepNetwork:
    """A network that is compiled for each image size, and goes on uncompiled when that fails.

    Only whole batches are compiled: the last batch of an epoch may be smaller, and a compilation takes longer than it.

    Args:
        model: Network in training mode.
        backend: Name or function of torch.compile's backend; None to compile nothing.
    """

    def __init__(self, model: nn.Module, backend: str | Callable[..., Any] | None) -> None:
        self._model = model
        # Not dynamic: a size that changes twice in a run is worth kernels of its own.
        self._compiled: Callable[[Tensor], Tensor] | None = None
        if backend:
            self._compiled = torch.compile(model, backend=backend, dynamic=False)
        self._batch: int | None = None
        self._shapes: set[torch.Size] = set()  # that are compiled

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Return the prediction; prints why, when the network is not compiled any more."""
        self._batch = self._batch or len(image_BCHW)
        is_whole = len(image_BCHW) == self._batch
        if self._compiled is not None and is_whole and image_BCHW.shape not in self._shapes:
            self._compile(self._compiled, image_BCHW)
        if self._compiled is not None and image_BCHW.shape in self._shapes:
            return self._compiled(image_BCHW)
        pred: Tensor = self._model(image_BCHW)
        return pred

    def _compile(self, network: Callable[[Tensor], Tensor], image_BCHW: Tensor) -> None:
        """Compile for images of this shape, forwards and backwards, before a step depends on it."""
        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        try:
            torch.autograd.grad(network(image_BCHW).float().sum(), list(self._model.parameters()))
            self._shapes.add(image_BCHW.shape)
        except Exception as error:  # of the compiler, or of a compiler that it calls
            size = f"{image_BCHW.shape[-1]}×{image_BCHW.shape[-2]}"
            reason = " ".join(str(error).split("\n")[:2])  # the first line may only name the backend
            print(f"Training goes on uncompiled: {type(error).__name__} for images of {size}: {reason}", flush=True)
            self._compiled = None
        self._model.load_state_dict(buffers, strict=False)  # statistics count this batch once


def set_gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Set the gradients of the mean loss over all workers; unlike ``backward``, without an operation for each."""
    gradients = [
        gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True)
    ]  # the fused optimizer needs them in the layout of the weights
    average_over_workers(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient

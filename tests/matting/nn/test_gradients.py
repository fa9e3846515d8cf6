"""The compiled network of a training step: what it compiles, and that it goes on without a compiler."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from matting.nn.gradients import StepNetwork
from matting.nn.trainer import Trainer
from tests.support.training import SIZE, new_trainer, noise_batches


def broken(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:  # noqa: ARG001
    raise OSError("no compiler in PATH\nsecond line")


def interpreted(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:  # noqa: ARG001
    return graph.forward


def trained(backend: Callable[..., Any] | None) -> Trainer:
    """Return a trainer that took steps at two image sizes, the last of them with a smaller batch."""
    trainer = new_trainer(ema_decay=0.5, learning_rate=1e-3)
    trainer._network = StepNetwork(trainer._unaveraged, backend)
    for size in (SIZE, SIZE // 2):
        trainer.train_epoch(noise_batches([range(4)] * 3 + [range(3)], size))
    return trainer


@pytest.mark.parametrize("backend", [broken, aot_autograd(fw_compiler=interpreted, bw_compiler=broken)])
def test_a_failing_compiler_changes_nothing(backend: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    found, expected = trained(backend).model.state_dict(), trained(None).model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Training goes on uncompiled: ")
    assert f" for images of {SIZE}×{SIZE}: " in line
    assert "no compiler in PATH" in line


def test_each_image_size_is_compiled_once_for_whole_batches() -> None:
    torch._dynamo.reset()
    shapes = []

    def recording(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        shapes.append(next(value.shape for value in inputs if value.ndim == 4 and value.shape[1] == 3))
        return interpreted(graph, inputs)

    found, expected = trained(recording).model.state_dict(), trained(None).model.state_dict()
    assert shapes == [(4, 3, SIZE, SIZE), (4, 3, SIZE // 2, SIZE // 2)]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)

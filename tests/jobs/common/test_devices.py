"""GPUs that a job counts on and torch cannot use."""

import pytest
import torch

from jobs.common import devices
from jobs.common.devices import NoGpuError, promised_gpu, require_gpus

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_process_without_a_usable_gpu_says_why() -> None:
    with pytest.raises(NoGpuError, match=r"was given a GPU and cannot use it: .+\. Install a torch that fits"):
        promised_gpu()


def test_reason_is_that_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it.")

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(devices.torch, "ones", fail)
    with pytest.raises(NoGpuError, match="this machine: The NVIDIA driver on your system is too old"):
        require_gpus(is_own=True)

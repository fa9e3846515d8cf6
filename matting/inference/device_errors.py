"""Errors of a device that computes a network, told from errors of one photo.

After such an error, a process cannot trust the device any more: CUDA refuses every later call of the process.
"""

import re

import torch

# Parts of messages that CUDA, its libraries and torch's other accelerators put into plain RuntimeErrors.
_DEVICE_WORDS = re.compile(r"CUDA|cuda[A-Z_]|cudnn|cublas|cufft|NCCL|HIP error|device-side assert", re.IGNORECASE)


class DeviceError(Exception):
    """Failure of a device or its runtime, and not of the photos on it. The message has the device's own words."""

    @classmethod
    def of(cls, error: Exception) -> "DeviceError":
        """Return the failure that an error stands for, with the first line of its message."""
        return error if isinstance(error, cls) else cls(f"{type(error).__name__}: {str(error).splitlines()[0]}")


def is_device_error(error: Exception) -> bool:
    """Return whether an error comes from the device or its runtime.

    torch.OutOfMemoryError counts: a :class:`~matting.inference.network.Network` raises it only after it has tried again
    with half the micro-batch.
    """
    if isinstance(error, DeviceError | torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and bool(_DEVICE_WORDS.search(str(error)))

"""A watch over device tensors: fails on every operation for which a real GPU would make the host wait."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# Operations whose results, or whose results' shapes, the host has to read.
WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("_unique2", "unique_dim", "unique_consecutive"),
}


def without_values(array: np.ndarray, _: torch.device) -> Tensor:
    """Return a tensor on the device "meta" that stands for a copy of the array on a GPU."""
    return torch.empty(array.shape, dtype=torch.from_numpy(array[:0]).dtype, device="meta")


class NoHostReads(TorchDispatchMode):
    """Mode that raises an AssertionError for a host read of a tensor on the device "meta", or a copy from or to it.

    Tensors on "meta" have no values, and stand for those of a GPU. FakeTensorMode has fake CUDA tensors, but they need
    a torch with CUDA: the one without has no device guard for them, so that slices, indices and copies raise. An
    operation on tensors of two devices fails too, except with single numbers, which torch passes along with it. Only
    ``torch.tensor(…, device="meta")`` goes unseen, which copies as well.

    Attributes:
        operations: Number of operations dispatched on these tensors.
    """

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        name, device = func.overloadpacket.__name__, (kwargs or {}).get("device")
        if name == "_to_copy" and device is not None and (torch.device(device).type == "meta") != given[0].is_meta:
            raise AssertionError(f"{func} copies to another device")
        if any(tensor.is_meta for tensor in given):
            self.operations += 1
            is_mask = name in ("index", "index_put_") and any(tensor.dtype == torch.bool for tensor in given[1:])
            if name in WAITING or is_mask:
                raise AssertionError(f"the host reads a result of {func}")
            if not all(tensor.is_meta or not tensor.dim() for tensor in given):
                raise AssertionError(f"{func} needs tensors of two devices")
        return func(*args, **(kwargs or {}))

"""Faults inside Python processes: each process whose PYTHONPATH has this folder gets those that SABOTAGE names.

    poison   a photo that contains the bytes POISON ends the process that decodes it, with SIGSEGV
    sick     the network raises the error of a broken GPU

Python imports this module when it starts. Nothing is changed before the process imports the module in question.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

POISON = b"poison: ends the process that decodes this"


def poison_decoders(images: ModuleType) -> None:
    """Let the decoders of photos end their process at a poisoned photo."""

    def poisoned(decode: Callable[..., Any]) -> Callable[..., Any]:
        def decode_or_die(data: bytes, *arguments: Any) -> Any:
            if POISON in data:
                os.kill(os.getpid(), signal.SIGSEGV)
            return decode(data, *arguments)

        return decode_or_die

    for name in ("decode_image", "decode_photo"):
        setattr(images, name, poisoned(getattr(images, name)))


def sicken_network(network: ModuleType) -> None:
    """Let every forward pass fail as it does on a GPU that is broken."""

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    network.Network._forward = fail


PATCHES = {
    "poison": ("matting.data.images", poison_decoders),
    "sick": ("matting.inference.network", sicken_network),
}


class PatchingFinder(importlib.abc.MetaPathFinder):
    """Finder of modules that patches some of them once they are loaded.

    Args:
        patches: Function to patch a module, by the module's name.
    """

    def __init__(self, patches: dict[str, Callable[[ModuleType], None]]) -> None:
        self._patches = patches

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        """Find a module that is to be patched; leave all others to the other finders."""
        patch = self._patches.get(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if patch else None
        if spec is None or spec.loader is None or patch is None:
            return None
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            patch(module)

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


if names := os.environ.get("SABOTAGE"):
    sys.meta_path.insert(0, PatchingFinder(dict(PATCHES[name] for name in names.split(","))))

"""The actor that training's processes send messages to: console lines, progress, rejected and suspicious pairs.

It is one process for both, since each of Ray's processes takes time to start and some of a core while idle. Its start
costs what this module and the modules of its messages import: nothing but Ray.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray


@dataclass(frozen=True)
class ProgressMessage:
    """Progress of one activity.

    Args:
        what: Name of the activity, such as "packing".
        done: Number of units that are done.
        total: Number of units to do.
        unit: Name of the units, such as "pairs".
        seconds: Time since the activity began, in seconds.
    """

    what: str
    done: int
    total: int
    unit: str
    seconds: float


@ray.remote(num_cpus=0)
class Mailbox:
    """Queue of messages, first in, first out; and why pairs were rejected or are suspicious, over all tasks."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._reasons: dict[str, str] = {}
        self._warnings: dict[str, str] = {}

    async def put(self, message: Any) -> None:
        """Add a message."""
        self._messages.put_nowait(message)

    async def get(self) -> Any:
        """Wait for the next message, and take it out of the queue."""
        return await self._messages.get()

    async def reject(self, reasons: Mapping[str, str]) -> None:
        """Add reasons by key. A task that Ray repeats may add the same ones again."""
        self._reasons.update(reasons)

    async def rejected(self) -> dict[str, str]:
        """Return all reasons by key, sorted by key."""
        return dict(sorted(self._reasons.items()))

    async def warn(self, warnings: Mapping[str, str]) -> None:
        """Add what is suspicious about pairs, by key. A task that Ray repeats may add the same ones again."""
        self._warnings.update(warnings)

    async def warnings(self) -> dict[str, str]:
        """Return what is suspicious about pairs, by key, sorted by key."""
        return dict(sorted(self._warnings.items()))

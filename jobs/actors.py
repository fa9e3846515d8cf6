"""Actors that carry what workers have to say: lines and progress for the console, pairs that could not be decoded.

Each is a process of its own, whose start costs what this module imports, and what the modules of its messages do:
nothing but Ray.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray


@dataclass(frozen=True)
class Done:
    """A message: so many of a total are done."""

    what: str
    done: int
    total: int
    unit: str
    seconds: float


@ray.remote(num_cpus=0)
class Mailbox:
    """Messages, in the order in which they come."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Any] = asyncio.Queue()

    async def put(self, message: Any) -> None:
        """Add one."""
        self._messages.put_nowait(message)

    async def get(self) -> Any:
        """Wait for the next one, and take it away."""
        return await self._messages.get()


@ray.remote(num_cpus=0)
class Rejected:
    """What could not be decoded, over all tasks. A task that is repeated reports the same again: no matter."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def add(self, reasons: Mapping[str, str]) -> None:
        """Reasons by key."""
        self._reasons.update(reasons)

    def all(self) -> dict[str, str]:
        """Reasons by key, sorted by key."""
        return dict(sorted(self._reasons.items()))

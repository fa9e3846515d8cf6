"""The actor that carries what a training's processes have to say: lines and progress for the console, and pairs that
could not be decoded.

It is one process, since each of Ray's takes time to start and some of a core while idle. Its start costs what this
module imports, and what the modules of its messages do: nothing but Ray.
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
    """Messages, in the order in which they come; and what could not be decoded, over all tasks."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._reasons: dict[str, str] = {}

    async def put(self, message: Any) -> None:
        """Add a message."""
        self._messages.put_nowait(message)

    async def get(self) -> Any:
        """Wait for the next message, and take it away."""
        return await self._messages.get()

    async def reject(self, reasons: Mapping[str, str]) -> None:
        """Add reasons by key. A task that is repeated tells the same again: no matter."""
        self._reasons.update(reasons)

    async def rejected(self) -> dict[str, str]:
        """All reasons by key, sorted by key."""
        return dict(sorted(self._reasons.items()))

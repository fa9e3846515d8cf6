"""Turns on a machine's cores: a node has more tasks than cores, and as many tasks compute as it has cores.

Ray starts a task a tenth of a second after another one ends. A task that waits here has received its block already, and
begins as soon as a core is free, so that no core idles meanwhile.
"""

import fcntl
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

MAX_CORES = 1 << 16  # of a machine
POLL_SECONDS = 0.01  # one task of a machine looks for a free core so often; that takes less than 1 % of a core


@contextmanager
def turn_on_a_core(run: str, cores: int) -> Iterator[None]:
    """Hold one of the machine's cores during a ``with``; wait before, until one is free.

    Cores are locks on single bytes of an empty file of this user's. The kernel frees those of a process that dies.
    Where there can be no such file, no task waits: that costs some speed, and nothing else.

    Args:
        run: Name of the run. Runs do not wait for one another.
        cores: Number of tasks of the run that compute at a time on this machine.
    """
    queue = zlib.crc32(run.encode()) * MAX_CORES  # the byte for the one task that looks for a core
    with _open() or nullcontext() as file:
        if file:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, queue)
            while not any(_lock(file, queue + core) for core in range(1, cores + 1)):
                time.sleep(POLL_SECONDS)
            fcntl.lockf(file, fcntl.LOCK_UN, 1, queue)
        yield


def _open() -> BinaryIO | None:
    """Open the file of locks; None if the disk is full or cannot be written."""
    try:
        return Path(tempfile.gettempdir(), f"matting-{os.getuid()}.turns").open("ab")
    except OSError:
        return None


def _lock(file: BinaryIO, place: int) -> bool:
    """Lock a byte of the file if it is free, and return whether it was."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
    except (BlockingIOError, PermissionError):  # either is what systems raise for a byte that is locked
        return False
    return True

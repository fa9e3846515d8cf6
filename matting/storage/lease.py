"""Leases: while a job writes into a folder, no other job that would disturb it does.

    hold          folder -> Fence, while a thread renews the lease; released at the end
    Fence.check   before a write that others must not undo: raise LeaseLostError if somebody has taken the folder over

The leases of a folder are small objects, <folder>/_lease/<number>.json, which name their holders. A number is taken by
creating its object, which the store lets only one process do; the highest number is the latest holder's. The object is
removed at the release. It stays if it has replaced the lease of a job that was killed or stalled, which then sees that
a higher number exists.

A lease ends when it is released, when it has not been renewed for `LEASE_SECONDS` by the clocks of the machines, or
when its process is dead and ran on the machine of the process that asks. Leases of the same group exist side by side.
On fsspec's stores, two processes that begin in the same moment may both get a lease, as these stores cannot create an
object exclusively.
"""

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # psutil has no types

from matting.storage import store
from matting.storage.errors import NotFoundError, StorageError
from matting.storage.uri import join_uri

LEASE_SECONDS = 60.0  # after its last renewal, a lease is over
RENEWALS = 4  # per LEASE_SECONDS

_FOLDER = "_lease"

_log = logging.getLogger(__name__)


class LeaseHeldError(StorageError):
    """A folder that another job is using. The message says who, since when and until when, and what to do."""


class LeaseLostError(StorageError):
    """A lease that another job has taken over. The message says who, and since when."""


@cache
def machine_identity() -> str:
    """Return an identity of this machine until it restarts, and of the container if it has process numbers of its own.

    Returns:
        The identity; where the kernel has none, a random one, so that no lease of another process has the same.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"unknown-{uuid.uuid4().hex}"


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Contents of a lease object.

    Args:
        command: Command of the process that holds the lease.
        group: Name shared by jobs that may use the folder side by side; None for a job that must be alone.
        since: Time at which the lease was taken, in seconds since 1970.
        expires: Time at which it ends unless it is renewed; 0 once it is released.
        host: Name of the holder's machine.
        pid: Number of the holder's process.
        process_began: Time at which that process began.
        machine: Identity of the machine and of its space of process numbers; see `machine_identity`.
        token: Random text, which tells two leases of the same process apart.
    """

    command: str
    group: str | None
    since: float
    expires: float
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    process_began: float = field(default_factory=lambda: psutil.Process().create_time())
    machine: str = field(default_factory=machine_identity)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def encode(self) -> bytes:
        """Return the lease as the bytes of its object."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def is_live(self) -> bool:
        """Return whether its holder may still be writing."""
        return self.expires > time.time() and not (self.machine == machine_identity() and self._is_process_dead())

    def admits(self, group: str | None) -> bool:
        """Return whether a job of this group may use the folder beside this one."""
        return group is not None and group == self.group

    def describe(self) -> str:
        """Return who holds the lease, since when and until when, as part of a sentence."""
        return (
            f"process {self.pid} on {self.host} since {_format_time(self.since)}, until {_format_time(self.expires)} "
            f"unless renewed ({self.command})"
        )

    def _is_process_dead(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return bool(process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.process_began) > 2)
        except psutil.NoSuchProcess:
            return True


@dataclass(frozen=True)
class Fence:
    """Proof of a lease, which travels to all processes of its job.

    Args:
        folder: URI of the folder.
        number: Fencing number of the lease.
        group: Group of the lease.
    """

    folder: str
    number: int
    group: str | None

    def check(self) -> None:
        """Check that no other job has taken the folder over.

        Raises:
            LeaseLostError: Another job has. The caller must not write.
            StorageError: The store cannot be asked.
        """
        for number in filter(lambda number: number > self.number, _numbers(self.folder)):
            found = _read(self.folder, number)
            is_lost = not found.admits(self.group) if found else self.group is None
            if is_lost:
                holder = found.describe() if found else "another job"
                raise LeaseLostError(
                    f"{self.folder} was taken over by {holder}: lease {number} has replaced this job's, {self.number}, "
                    "which had ended. This job writes nothing more."
                )


@contextmanager
def hold(
    folder: str, command: str, group: str | None = None, take_over: bool = False, seconds: float = LEASE_SECONDS
) -> Iterator[Fence]:
    """Take the lease of a folder, renew it in a thread until the end of the ``with``, and release it then.

    Args:
        folder: URI of the folder.
        command: Command of this process, for the messages that others get.
        group: Name shared by jobs that may use the folder side by side; None to be alone.
        take_over: Whether to end the leases of others.
        seconds: Time without renewal after which the lease ends.

    Raises:
        LeaseHeldError: Another job uses the folder.
        StorageError: The store does not answer, or refuses.
    """
    now = time.time()
    lease = Lease(command=command, group=group, since=now, expires=now + seconds)
    number, has_replaced = _take(folder, lease, take_over)
    fence = Fence(folder, number, group)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(fence, lease, seconds, ended), daemon=True)
    renewing.start()
    try:
        yield fence
    finally:
        ended.set()
        renewing.join()
        with suppress(StorageError):  # then it expires
            if has_replaced:
                store.write_bytes(_uri(folder, number), replace(lease, expires=0.0).encode())
            else:
                store.delete(_uri(folder, number))


def _take(folder: str, lease: Lease, take_over: bool) -> tuple[int, bool]:
    """Create the lease's object, and remove those of lower numbers that have ended.

    Returns:
        The lease's number, and whether there were others that have ended.
    """
    while True:
        numbers = _numbers(folder)
        found = {number: other for number in numbers if (other := _read(folder, number))}
        disturbing = [other for other in found.values() if other.is_live() and not other.admits(lease.group)]
        if disturbing and not take_over:
            others = "" if lease.group is None else " with other settings"
            raise LeaseHeldError(
                f"{folder} is in use{others}: by {'; by '.join(other.describe() for other in disturbing)}. Wait until "
                "it ends. If that process is dead, give --take-over."
            )
        number = max(numbers, default=0) + 1
        if store.create_bytes(_uri(folder, number), lease.encode()):
            ended = [
                lower
                for lower in numbers
                if lower not in found or found[lower] in disturbing or not found[lower].is_live()
            ]
            for lower in ended:
                store.delete(_uri(folder, lower))
            return number, bool(ended)


def _renew(fence: Fence, lease: Lease, seconds: float, ended: threading.Event) -> None:
    while not ended.wait(seconds / RENEWALS):
        try:
            fence.check()
            renewed = replace(lease, expires=time.time() + seconds)
            store.write_bytes(_uri(fence.folder, fence.number), renewed.encode())
        except LeaseLostError as error:  # the job ends at its next check
            _log.warning("%s", error)
            return
        except StorageError as error:
            _log.warning("The lease cannot be renewed now. %s", error)


def _numbers(folder: str) -> list[int]:
    """Return the numbers of all leases of a folder, ascending."""
    try:
        files = store.list_files(join_uri(folder, _FOLDER))
    except NotFoundError:
        return []
    return sorted(int(name) for name in (file.key.removesuffix(".json") for file in files) if name.isdigit())


def _read(folder: str, number: int) -> Lease | None:
    """Return a lease; None if it is gone, since it had ended and a higher one exists, or if it is damaged."""
    try:
        return Lease(**json.loads(store.read_bytes(_uri(folder, number))))
    except (NotFoundError, ValueError, TypeError):
        return None


def _uri(folder: str, number: int) -> str:
    return join_uri(folder, f"{_FOLDER}/{number:08d}.json")


def _format_time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"

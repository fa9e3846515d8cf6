"""What every job needs of Ray and of the terminal: a cluster that is large enough, progress, exit codes.

Exit codes: 0 done, 1 the work failed, 2 it could not begin (options, data, checkpoint, cluster). `ray job submit` turns
both failures into 1.
"""

import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from jobs.actors import Done, Mailbox
from jobs.config import ConfigError
from jobs.telemetry import Tally
from matting.checkpoint import CheckpointError
from matting.collection import DataError
from matting.ledger import LedgerError
from matting.pairs import PairsError
from matting.photos import PhotosError
from matting.shards import ShardError
from matting.storage import StorageError

QUIET_SECONDS = 15  # between lines of progress where there is no terminal
GROWTH_MINUTES = 15  # that a cluster may take to grow: a GPU node needs five, its packages included
# Environment of a cluster of this machine alone. Ray looks at its own processes and log files up to ten times a second,
# and each time a thread of the network's is put aside, for which the others wait; nobody asks here for what it sees.
UNWATCHED = {
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "LOG_NAME_UPDATE_INTERVAL_S": "60",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # files, from which on that interval holds
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing about a laptop's runs leaves it
}
NODE_GROUP = "ray.io/node-group"  # Ray's label of nodes that an autoscaler starts and ends


class ClusterError(Exception):
    """The cluster cannot hold the job. The message says what it has, what is asked of it, and what to do."""


class JobError(Exception):
    """The work began and failed. The message says what happened and what to do."""


CANNOT_BEGIN = (
    ConfigError,
    DataError,
    PairsError,
    PhotosError,
    ShardError,
    LedgerError,
    StorageError,
    CheckpointError,
    ClusterError,
)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Run a job's main, turning the errors that a user can act on into one paragraph and an exit code."""
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the console tells what a user wants to know; errors raise
    try:
        main(sys.argv[1:])
    except CANNOT_BEGIN as error:
        # A job starts its cluster when all else is known to be right: from then on, what goes wrong is the work.
        has_begun = ray.is_initialized() and not isinstance(error, ClusterError)
        print(f"{'failed' if has_begun else 'error'}: {error}", file=sys.stderr)
        sys.exit(1 if has_begun else 2)
    except JobError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("failed: interrupted. What is done stays done; the same command does the rest.", file=sys.stderr)
        sys.exit(1)


def command() -> str:
    """The command that runs now, to be pasted again."""
    return shlex.join(["python", *sys.argv])


@dataclass(frozen=True)
class Resources:
    """What work can keep busy: cores and GPUs, of a cluster that was started here or of one that may grow; and how many
    seconds it took to start or join."""

    is_own: bool
    cores: int
    gpus: int
    seconds: float


def is_own() -> bool:
    """Whether :func:`start` has no cluster to join, and would start one on this machine."""
    return "RAY_ADDRESS" not in os.environ and not ray.is_initialized()


def start(cpus: float, reading: float, gpus: float, what: str, spare: int = 1) -> Resources:
    """Join the cluster of RAY_ADDRESS, or start one on this machine, and check that the job fits.

    A cluster that has an autoscaler is asked to grow, and waited for.

    Args:
        cpus: cores that the job holds while it runs.
        reading: cores that one task needs beside them: without, the job would wait for ever.
        gpus: that the job holds, each beside one of the cores.
        what: takes them, for the error message.
        spare: logical cores that a cluster of its own has more than there are, for reading beside workers that hold
            them all.

    Raises:
        ClusterError: it does not fit.
    """
    began = time.monotonic()
    own = is_own()
    if "RAY_ADDRESS" in os.environ and not ray.is_initialized():
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    cores = os.cpu_count() or 1
    if own and cpus <= cores:
        for name, value in UNWATCHED.items():
            os.environ.setdefault(name, value)
        # "local": not the cluster that somebody else started on this machine.
        ray.init(
            address="local",
            num_cpus=cores + spare,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    found = ray.cluster_resources() if ray.is_initialized() else {"CPU": float(cores)}
    if cpus + reading > found.get("CPU", 0) or gpus > found.get("GPU", 0):
        shortage = (
            f"{what} need {cpus:g} CPUs, {reading:g} for reading and {gpus:g} GPUs; the cluster has "
            f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs."
        )
        if not (ray.is_initialized() and any(NODE_GROUP in node["Labels"] for node in ray.nodes())):
            raise ClusterError(f"{shortage} Ask for fewer, or add nodes.")
        print(f"{shortage} Waiting for it to grow, at most {GROWTH_MINUTES} minutes.", flush=True)
        grow(cpus, reading, gpus, shortage)
        found = ray.cluster_resources()
    cores = cores if own else int(found["CPU"])
    return Resources(own, cores, int(found.get("GPU", 0)), time.monotonic() - began)


def grow(cpus: float, reading: float, gpus: float, shortage: str) -> None:
    """Wait until the autoscaler has brought what the job needs.

    Raises:
        ClusterError: it did not, in time.
    """
    bundles = [{"CPU": 1.0, "GPU": 1.0}] * int(gpus) + [{"CPU": 1.0}] * int(cpus - gpus)
    if reading:
        bundles.append({"CPU": reading})
    # The autoscaler takes a group that waits for its place for work to come, and it ends with this process.
    group = placement_group(bundles)
    try:
        if not group.wait(60 * GROWTH_MINUTES):
            raise ClusterError(
                f"{shortage} In {GROWTH_MINUTES} minutes it did not grow to that. `ray status` on its head says what "
                "it waits for, and monitor.log among Ray's logs there why a node did not start."
            )
    finally:
        remove_placement_group(group)


def here() -> NodeAffinitySchedulingStrategy:
    """Where this process runs: for an actor that must not die with any other node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class Console:
    """The one voice of a job on the terminal: it shows progress.

    Ray would print everything that any of its processes logs; here only what a user wants to read appears, and the
    rest stays in Ray's log files. Progress is a bar in a terminal, else a quiet line now and then. Use it in a
    ``with``.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._spoke = time.monotonic()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def progress(self, what: str, total: int, unit: str) -> "Progress":
        """Begin to count ``unit`` up to ``total``."""
        return Progress(self._show, what, total, unit)

    def _show(self, message: str | Done) -> None:
        if isinstance(message, str):
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()
        elif sys.stderr.isatty():
            if self._bar is None or self._bar.desc != f"{message.what}: ":
                self._bar = tqdm(desc=message.what, total=message.total, unit=f" {message.unit}", leave=False)
            self._bar.update(message.done - self._bar.n)
        elif time.monotonic() - self._spoke > QUIET_SECONDS:
            self._spoke = time.monotonic()
            print(in_words(message), flush=True)


class SharedConsole(Console):
    """One that workers can be sent, who then :meth:`say` something, tell of :meth:`progress`, send figures."""

    def __init__(self, mailbox: "ray.actor.ActorHandle[Mailbox]") -> None:
        super().__init__()
        self._mailbox = mailbox

    def __enter__(self) -> "SharedConsole":
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._mailbox.put.remote(None)
        self._thread.join()
        super().__exit__(*error)

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedConsole, (self._mailbox,)

    def say(self, line: str) -> None:
        """Have a line printed."""
        self._mailbox.put.remote(line)

    def publish(self, tally: Tally) -> None:
        """Have figures published."""
        self._mailbox.put.remote(tally)

    def progress(self, what: str, total: int, unit: str) -> "Progress":
        """As it is there."""
        return Progress(self._mailbox.put.remote, what, total, unit)

    def _listen(self) -> None:
        while (message := ray.get(self._mailbox.get.remote())) is not None:
            if isinstance(message, Tally):
                message.publish()
            else:
                self._show(message)


def in_words(state: Done) -> str:
    """One line."""
    form = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left"
    return tqdm.format_meter(
        state.done, state.total, state.seconds, prefix=state.what, unit=f" {state.unit}", bar_format=form
    )


class Progress:
    """Counts up to a total; tells it at most once a second."""

    def __init__(self, tell: Callable[[Done], object], what: str, total: int, unit: str) -> None:
        self._tell, self._what, self._total, self._unit = tell, what, total, unit
        self._done = 0
        self._began = self._told = time.monotonic()

    def update(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = time.monotonic()
        if now - self._told >= 1 or self._done == self._total:
            self._told = now
            self._tell(Done(self._what, self._done, self._total, self._unit, now - self._began))


def absolute(uri: str) -> str:
    """A local folder as an absolute path: workers have another working directory. URIs stay as they are."""
    return uri if "://" in uri else str(Path(uri).absolute())


def absolute_each(data: str) -> str:
    """The same for URIs with commas between; "synthetic" is none."""
    return data if data == "synthetic" else ",".join(absolute(uri.strip()) for uri in data.split(",") if uri.strip())

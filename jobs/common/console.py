"""Progress of a job on the terminal."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from tqdm import tqdm  # type: ignore[import-untyped]  # tqdm has no types

from jobs.common.mailbox import Mailbox, ProgressMessage
from jobs.common.telemetry import MetricBuffer

QUIET_SECONDS = 15  # least time between two lines of progress where there is no terminal


class Console:
    """Progress display of a job: a bar in a terminal, else a line now and then. Use it in a ``with``.

    Ray would print everything that any of its processes logs. Jobs switch that off, and print only what a user wants to
    read; the rest stays in Ray's log files.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def progress(self, what: str, total: int, unit: str) -> "Progress":
        """Return a counter of ``unit`` up to ``total``, which this console displays."""
        return Progress(self._show, what, total, unit)

    def _show(self, message: str | ProgressMessage) -> None:
        if isinstance(message, str):
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()
        elif sys.stderr.isatty():
            if self._bar is None or self._bar.desc != f"{message.what}: ":
                self._bar = tqdm(desc=message.what, total=message.total, unit=f" {message.unit}", leave=False)
            self._bar.update(message.done - self._bar.n)
        elif time.monotonic() - self._last_line > QUIET_SECONDS:
            self._last_line = time.monotonic()
            print(format_progress(message), flush=True)


class SharedConsole(Console):
    """Console that can be sent to workers, which print lines, report progress and publish metrics through it.

    Args:
        mailbox: Actor that carries the workers' messages to the process that has entered the ``with``.
    """

    def __init__(self, mailbox: "ray.actor.ActorHandle[Mailbox]") -> None:
        super().__init__()
        self._mailbox: Any = mailbox  # Ray's stubs lose the types of an actor's async methods

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
        """Print a line on the job's terminal, from any process."""
        self._mailbox.put.remote(line)

    def publish(self, metrics: MetricBuffer) -> None:
        """Publish metrics from the job's own process."""
        self._mailbox.put.remote(metrics)

    def progress(self, what: str, total: int, unit: str) -> "Progress":
        """Return a counter of ``unit`` up to ``total``, which any process may update."""
        return Progress(self._mailbox.put.remote, what, total, unit)

    def _listen(self) -> None:
        while (message := ray.get(self._mailbox.get.remote())) is not None:
            if isinstance(message, MetricBuffer):
                message.publish()
            else:
                self._show(message)


def format_progress(state: ProgressMessage) -> str:
    """Return progress as one line, with its rate and the time that is left."""
    form = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left"
    line: str = tqdm.format_meter(
        state.done, state.total, state.seconds, prefix=state.what, unit=f" {state.unit}", bar_format=form
    )
    return line


class Progress:
    """Counter up to a total, which sends its state at most once a second, and when it is complete.

    Args:
        send: Function that receives each state.
        what: Name of the activity.
        total: Number of units to do.
        unit: Name of the units.
    """

    def __init__(self, send: Callable[[ProgressMessage], object], what: str, total: int, unit: str) -> None:
        self._send, self._what, self._total, self._unit = send, what, total, unit
        self._done = 0
        self._began = self._last_sent = time.monotonic()

    def update(self, count: int) -> None:
        """Add the number of units that were done since the last call."""
        self._done += count
        now = time.monotonic()
        if now - self._last_sent >= 1 or self._done == self._total:
            self._last_sent = now
            self._send(ProgressMessage(self._what, self._done, self._total, self._unit, now - self._began))

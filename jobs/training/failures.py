"""Decision whether to start failed workers again: progress resets the count, and an error that repeats ends the run."""

import re
from collections import Counter
from collections.abc import Collection

MAX_FAILURES = 8  # failures without a new checkpoint in between, after which the run gives up
MAX_REPEATS = 3  # the same, of failures with one and the same error

# Numbers and addresses in a message: ports, process IDs, free memory. They differ when the same error repeats.
_VARYING = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)*", re.IGNORECASE)


class FailureBudget:
    """Count of the failures of a run's workers since its last checkpoint.

    The loss of a worker, as its node dies, is not an error that repeats: it is counted, but compared with no other.
    """

    def __init__(self) -> None:
        self._epochs_done = -1
        self._failures = 0
        self._repeats: Counter[str] = Counter()

    def is_used_up(self, errors: Collection[Exception], epochs_done: int) -> bool:
        """Count a failure, and return whether the run must give up.

        Args:
            errors: Errors of the workers that failed together.
            epochs_done: Number of epochs at the last checkpoint.
        """
        if epochs_done != self._epochs_done:
            self._epochs_done, self._failures = epochs_done, 0
            self._repeats.clear()
        self._failures += 1
        if not any(map(is_lost_worker, errors)):
            self._repeats.update({_VARYING.sub("#", last_line(error)) for error in errors})
        return self._failures > MAX_FAILURES or self.repeats >= MAX_REPEATS

    @property
    def repeats(self) -> int:
        """Number of failures with the most frequent error since the last checkpoint."""
        return max(self._repeats.values(), default=0)


def is_lost_worker(error: Exception) -> bool:
    """Return whether a worker's error is the end of its process or node, not an exception that it raised."""
    return hasattr(error, "health_check_failure")  # Ray's class for these errors is private


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, or the name of its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]

"""Exit codes: a job's errors become one paragraph on the terminal and a code.

0: done. 1: the work began and failed. 2: it could not begin (options, data, checkpoint, cluster). `ray job submit`
turns both failures into 1.
"""

import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence

from jobs.common import cluster
from jobs.common.cluster import ClusterError
from jobs.common.config import ConfigError
from matting.data.dataset import DataError
from matting.data.pairs import PairsError
from matting.data.photo_tables import PhotosError
from matting.data.shards import ShardError
from matting.data.sources.tables import TableError
from matting.nn.checkpoint import CheckpointError
from matting.results.cutouts import BadBackground
from matting.results.ledger import LedgerError
from matting.storage.errors import StorageError


class JobError(Exception):
    """Failure of work that had begun. The message says what happened and what to do."""


CANNOT_BEGIN = (
    ConfigError,
    DataError,
    PairsError,
    PhotosError,
    TableError,
    ShardError,
    LedgerError,
    StorageError,
    CheckpointError,
    ClusterError,
    BadBackground,
)


def run_job(main: Callable[[Sequence[str]], None]) -> None:
    """Run a job's main function; print an error that a user can act on, and exit with its code."""
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their lines would break up the console's; errors raise
    # Ray Data warns that fewer blocks than tasks use fewer tasks. With a few photos there is nothing else to do.
    warnings.filterwarnings("ignore", r"The (max|min)imum number of concurrent (tasks|actors) for ", UserWarning)
    try:
        main(sys.argv[1:])
    except CANNOT_BEGIN as error:
        # A job starts its cluster after it has checked everything else: what goes wrong later is a failure of the work.
        has_begun = cluster.has_started() and not isinstance(error, ClusterError)
        print(f"{'failed' if has_begun else 'error'}: {error}", file=sys.stderr)
        sys.exit(1 if has_begun else 2)
    except JobError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("failed: interrupted. What is done stays done; the same command does the rest.", file=sys.stderr)
        sys.exit(1)


def command_line() -> str:
    """Return the command that is running, quoted so that it can be pasted into a shell."""
    return shlex.join(["python", *sys.argv])

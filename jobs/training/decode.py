"""Decoding in Ray tasks: pairs and photos without people become uint8 arrays at training size.

    decode_columns      Rows                         -> columns key, image, alpha, error, for a few rows at a time
    start_backgrounds   table of background photos   -> references to decoded arrays

What cannot be decoded or is suspicious is reported to the mailbox (jobs/common/mailbox.py) by key and reason. Knows no
order of rows, and no network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import ray

from jobs.common.visibility import Token, require_visible
from matting.data import backgrounds
from matting.data.rows import Example, Rows

MailboxHandle: TypeAlias = Any  # handle of a Mailbox actor; Ray's ActorHandle[Mailbox] types its methods as Never

TASK_ROWS = 64  # rows that a task decodes at a time: enough to be worth a task, few enough to spread over the cores
READ_CPUS = 0.9  # cores that a reading task holds; a little less than the one that elastic workers leave on a node


@dataclass(frozen=True)
class SeenRows:
    """Rows that are read only where the driver's files are seen, as a missing file would count as a bad pair.

    Args:
        rows: The rows.
        token: Proof that a node sees the files.
    """

    rows: Rows
    token: Token

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def random_access(self) -> bool:
        """Whether rows from all over the dataset are read as fast as neighbours."""
        return self.rows.random_access

    def take(self, indices: np.ndarray) -> "SeenRows":
        """Return the rows at these indices, in this order."""
        return SeenRows(self.rows.take(indices), self.token)

    def examples(self, size: int | None) -> Iterator[Example]:
        """Decode the rows in order; see `Rows.examples`.

        Raises:
            InvisiblePathError: This node does not see the files.
        """
        require_visible(self.token)
        return self.rows.examples(size)


def decode_columns(
    rows: Rows, size: int, mailbox: MailboxHandle, keep_rejected: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Decode rows in their order, ``TASK_ROWS`` at a time.

    Args:
        rows: Rows to decode.
        size: Side of the decoded images in pixels.
        mailbox: Receiver of the keys that cannot be decoded or are suspicious, and of the reasons.
        keep_rejected: Whether rejected rows become placeholders of zeros with an error, or are left out.

    Yields:
        Columns key (N strings), image uint8 (N, S, S, 3), alpha uint8 (N, S, S) and error (N strings).
    """
    examples = rows.examples(size)
    no_image, no_alpha = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
    while chunk := list(islice(examples, TASK_ROWS)):
        reasons = {example.key: example.error for example in chunk if example.error}
        if reasons:
            ray.get(mailbox.reject.remote(reasons))
        warnings = {example.key: example.warning for example in chunk if example.warning}
        if warnings:
            ray.get(mailbox.warn.remote(warnings))
        kept = [example for example in chunk if keep_rejected or not example.error]
        if kept:
            yield {
                "key": np.array([example.key for example in kept], object),
                "image": np.stack([no_image if example.image is None else example.image for example in kept]),
                "alpha": np.stack([no_alpha if example.alpha is None else example.alpha for example in kept]),
                "error": np.array([example.error for example in kept], object),
            }


def start_backgrounds(photos: pa.Table, size: int, mailbox: MailboxHandle) -> "list[ray.ObjectRef[np.ndarray]]":
    """Start to decode photos without people in parallel, and return without waiting.

    Args:
        photos: Table of photos, as :func:`matting.data.backgrounds.choose` returns it.
        size: Side of the decoded squares in pixels.
        mailbox: Receiver of the photos that cannot be decoded, and of the reasons.

    Returns:
        References to arrays uint8 (N, size, size, 3), which together hold each photo that can be decoded.
    """
    numbers = np.arange(len(photos))
    return [  # `take` copies the rows: a slice would travel to the task with all of its table
        decode_background_task.remote(photos.take(numbers[start : start + TASK_ROWS]), size, mailbox)
        for start in range(0, len(photos), TASK_ROWS)
    ]


@ray.remote(num_cpus=READ_CPUS, max_retries=-1)
def decode_background_task(photos: pa.Table, size: int, mailbox: MailboxHandle) -> np.ndarray:
    """Decode a few photos without people: uint8 (N, size, size, 3)."""
    images_NHWC, reasons = backgrounds.decode(photos, size)
    if reasons:
        ray.get(mailbox.reject.remote(reasons))
    return images_NHWC

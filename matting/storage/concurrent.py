"""Concurrent calls that wait for a store, with results in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def concurrently(
    call: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[tuple[_Item, _Result]]:
    """Yield (item, call(item)) for each item, in order, while threads already make the next calls.

    An exception that a call raises is raised when its result is due.

    Args:
        call: Function that waits for a store.
        items: Arguments of the calls.
        ahead: Maximum number of calls that run or whose results wait to be taken, at least 1. It bounds the memory that
            results take.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(ahead) as pool:
        pending = deque((item, pool.submit(call, item)) for item in islice(remaining, ahead))
        while pending:
            item, future = pending.popleft()
            result = future.result()
            pending.extend((item, pool.submit(call, item)) for item in islice(remaining, 1))
            yield item, result

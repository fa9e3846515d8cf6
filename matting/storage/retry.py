"""Retry policy for storage operations: which errors are retried, how often, after which pauses."""

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from matting.storage.errors import (
    NotFoundError,
    StorageError,
    TransientStorageError,
    advice_for,
    error_code,
    is_transient,
    is_unreachable,
)
from matting.storage.uri import redact_signatures, unsigned_uri

# A throttling store gets about 8 s in all, at most 15 s. Pauses are random, so that many waiting clients spread out.
MAX_TRIES = 6
_WAIT = wait_random_exponential(multiplier=0.5, max=8)  # seconds: up to 0.5 before the second try, then 1, 2, 4, 8

# Where nobody answers, a single try may take 24 s (8 addresses, 3 s each), and a user is waiting for the first message.
_CONNECTING_SECONDS = 10

_NO_ADVICE = "the store's own message follows"

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def with_retries(uri: str, action: str, operation: Callable[[], _T]) -> _T:
    """Return the result of `operation`, retrying it after transient errors. Every retry logs a WARNING.

    The operation must be idempotent, since its effect may be complete when only the answer is lost. It may call this
    function itself: a StorageError is never retried.

    Args:
        uri: URI that the operation works on, for messages; a signature in it is left out.
        action: Verb that says what the operation does to the URI, for messages.
        operation: Function that tries once.

    Raises:
        NotFoundError: The operation raised FileNotFoundError.
        TransientStorageError: The last try failed for a transient cause.
        StorageError: The operation failed for a permanent cause.
    """

    place = unsigned_uri(uri)

    def log_retry(state: RetryCallState) -> None:
        assert state.outcome
        assert state.next_action
        error = redact_signatures(str(state.outcome.exception()))
        number, seconds = state.attempt_number, state.next_action.sleep
        _log.warning(
            "Cannot %s %s, try %d of %d, retrying in %.1f s: %s", action, place, number, MAX_TRIES, seconds, error
        )

    retrying = Retrying(
        retry=retry_if_exception(is_transient), stop=_should_stop, wait=_WAIT, before_sleep=log_retry, reraise=True
    )
    try:
        return retrying(operation)
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"Cannot {action} {place}: it does not exist; correct the URI.") from error
    except Exception as error:
        cause = redact_signatures(f"{advice_for(error) or _NO_ADVICE}. [{error_code(error)}: {error}]")
        if is_transient(error):
            tries = retrying.statistics["attempt_number"]
            raise TransientStorageError(f"Cannot {action} {place}, tried {tries} times: {cause}") from error
        raise StorageError(f"Cannot {action} {place}: {cause}") from error


def _should_stop(state: RetryCallState) -> bool:
    assert state.outcome
    assert state.seconds_since_start is not None
    gave_up_connecting = is_unreachable(state.outcome.exception()) and state.seconds_since_start > _CONNECTING_SECONDS
    return state.attempt_number >= MAX_TRIES or gave_up_connecting

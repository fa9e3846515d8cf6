"""Trying again when a store or the network fails, and saying in the end what failed and what to do.

What flows through here are operations, each an attempt at one thing with one URI, and the errors of storage clients
(boto3's, pyarrow's, fsspec's, the operating system's), of which there is no common type: they are told apart by code.

Knows no store: what an operation does is for the caller.
"""

import errno
import logging
import re
from collections.abc import Callable
from typing import TypeVar

from botocore.exceptions import ClientError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

# A throttled store is given some 8 s on the whole, at most 15 s, in steps that spread the many that wait for it.
ATTEMPTS = 6
_WAIT = wait_random_exponential(multiplier=0.5, max=8)  # seconds: up to 0.5 before the second attempt, then 1, 2, 4, 8

# Where nobody answers, an attempt alone may take 24 s (8 addresses, 3 s each), and a user waits for the first.
_CONNECTING_SECONDS = 10

_NO_BUCKET = "the bucket does not exist; create it, or correct the URI"
_DENIED = (
    "access denied; allow these credentials s3:ListBucket on the bucket and s3:GetObject, s3:PutObject and "
    "s3:DeleteObject on its objects"
)
_REGION = "the bucket is in another region; set AWS_REGION (boto3: AWS_DEFAULT_REGION) to the bucket's own"
_EXPIRED = "the credentials have expired; renew them (for example `aws sso login`) and run again"
_REFUSED = f"the store refuses the request without saying why; often {_EXPIRED}"
_CREDENTIALS = "the store does not know these credentials; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE"
_NO_CREDENTIALS = "no credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID, or run under a role that has access"

# Of what passes, and is tried again.
_UNREACHABLE = "cannot connect; check the network, AWS_ENDPOINT_URL and the region"
_BROKEN = "the connection broke, or the store did not answer in time; check the network and the store, and run again"
_BUSY = "the store asks for fewer requests; run again with less concurrency"
_FAILING = "the store fails; run again when it is well"
_ABORTED = "the upload was aborted by somebody else; run again"
_PASSING = (_UNREACHABLE, _BROKEN, _BUSY, _FAILING, _ABORTED)

_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*:[^/]*@")

# What an error means and what to do, by its code: botocore's (`NoSuchBucket`), pyarrow's (`NO_SUCH_BUCKET`; compared
# without case and underscores), the HTTP status where an answer has no body, or the name of the errno or exception.
_ADVICE = {
    "nosuchbucket": _NO_BUCKET,
    "404": _NO_BUCKET,
    "accessdenied": _DENIED,
    "forbidden": _DENIED,
    "403": _DENIED,
    "301": _REGION,
    "permanentredirect": _REGION,
    "authorizationheadermalformed": _REGION,
    "expiredtoken": _EXPIRED,
    "requestexpired": _EXPIRED,
    "tokenretrievalerror": _EXPIRED,
    "unauthorizedssotokenerror": _EXPIRED,
    "400": _REFUSED,
    "invalidaccesskeyid": _CREDENTIALS,
    "signaturedoesnotmatch": _CREDENTIALS,
    "invalidtoken": _CREDENTIALS,
    "nocredentialserror": _NO_CREDENTIALS,
    "endpointconnectionerror": _UNREACHABLE,
    "connecttimeouterror": _UNREACHABLE,
    "proxyconnectionerror": _UNREACHABLE,
    "connectionclosederror": _BROKEN,
    "httpclienterror": _BROKEN,
    "incompletebody": _BROKEN,
    "networkconnection": _BROKEN,
    "readtimeouterror": _BROKEN,
    "requesttimeout": _BROKEN,
    "responsestreamingerror": _BROKEN,
    "shortread": _BROKEN,
    "econnrefused": _BROKEN,
    "econnreset": _BROKEN,
    "timeouterror": _BROKEN,
    "slowdown": _BUSY,
    "throttling": _BUSY,
    "toomanyrequests": _BUSY,
    "429": _BUSY,
    "503": _BUSY,
    "serviceunavailable": _BUSY,
    "internalerror": _FAILING,
    "internalfailure": _FAILING,
    "500": _FAILING,
    "502": _FAILING,
    "504": _FAILING,
    "nosuchupload": _ABORTED,
    "eacces": "the file system denies access; correct the owner or mode of the folder, or choose another",
    "erofs": "the file system is read-only; choose another folder",
    "enospc": "the disk is full; make room or choose another",
    "eexist": "a part of the path is a file, where a folder is needed; correct the path",
    "enotdir": "a part of the path is a file, where a folder is needed; correct the path",
    "eisdir": "this is a folder, where a file is needed; correct the path",
    "unicodedecodeerror": "the name of a file in it is not UTF-8; rename the file",
    "arrowinvalid": "S3 clients cannot name an object with an empty, '.' or '..' part in its path; rename it",
    "importerror": "a package that speaks this scheme is not installed; install the one that the message names",
}

# In the message of an error whose reason may have passed by the next run, and of no other.
FOR_NOW = " for now, tried "

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class StorageError(Exception):
    """What URI, what went wrong, what to do: one paragraph, fit to be shown as it is."""


class NotFoundError(StorageError):
    """The store answered, and holds nothing at this URI: no such object, no such folder, or an empty one."""


def refuse_password(uri: str) -> None:
    """Raises StorageError if there is one in the URI: URIs are written down, in logs, ledgers, pages, Ray's records."""
    if password := _PASSWORD.match(uri):
        raise StorageError(
            f"{password[1]}…@{uri[password.end() :]} has a password in it, which would be written down wherever the URI"
            " is. Take it out, and give it to the store's own client: for fsspec's, FSSPEC_<SCHEME>_PASSWORD or its "
            "configuration file; for S3, AWS_PROFILE, AWS_SECRET_ACCESS_KEY or a role."
        )


class ShortRead(OSError):
    """An answer was whole by its own account, and is shorter than the object."""


def attempt(uri: str, action: str, operation: Callable[[], _T]) -> _T:
    """What `operation` returns, tried again while it fails for a reason that passes; each failure is a WARNING.

    It must bear being done twice, since an answer may be lost of what was done. What a retried operation calls may use
    this function itself: its StorageErrors are final.

    Args:
        uri: what it is about.
        action: what it does to it, a verb.
        operation: one attempt.

    Raises:
        NotFoundError: FileNotFoundError was raised.
        StorageError: any other exception, in the end or for a reason that does not pass.
    """

    def warn(state: RetryCallState) -> None:
        assert state.outcome
        assert state.next_action
        error = state.outcome.exception()
        number, seconds = state.attempt_number, state.next_action.sleep
        _log.warning(
            "Cannot %s %s, attempt %d of %d, waiting %.1f s: %s", action, uri, number, ATTEMPTS, seconds, error
        )

    retrying = Retrying(
        retry=retry_if_exception(lambda error: _advice(error) in _PASSING),
        stop=_was_enough,
        wait=_WAIT,
        before_sleep=warn,
        reraise=True,
    )
    try:
        return retrying(operation)
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"Cannot {action} {uri}: it does not exist; correct the URI.") from error
    except Exception as error:
        advice = _advice(error) or "the store's own message follows"
        tried = f"{FOR_NOW}{retrying.statistics['attempt_number']} times" if advice in _PASSING else ""
        raise StorageError(f"Cannot {action} {uri}{tried}: {advice}. [{_code(error)}: {error}]") from error


def _was_enough(state: RetryCallState) -> bool:
    assert state.outcome
    assert state.seconds_since_start is not None
    is_unreachable = _advice(state.outcome.exception()) == _UNREACHABLE
    return state.attempt_number >= ATTEMPTS or (is_unreachable and state.seconds_since_start > _CONNECTING_SECONDS)


def _advice(error: BaseException | None) -> str | None:
    return _ADVICE.get(_code(error).lower().replace("_", ""))


def _code(error: BaseException | None) -> str:
    if isinstance(error, ClientError):
        return str(error.response["Error"]["Code"])
    if match := re.search(r"AWS Error (?:UNKNOWN \(HTTP status (\d+)\)|(\w+))", str(error)):
        return match[1] or match[2]
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno, type(error).__name__)
    return type(error).__name__

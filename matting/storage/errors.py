"""Storage errors, and what an error of a storage client means: its code, its advice, whether it is transient.

The clients (boto3, pyarrow, fsspec, the operating system) have no common exception type, so their errors are classified
by code.
"""

import errno
import re

from botocore.exceptions import ClientError


class StorageError(Exception):
    """Failure of a storage operation. The message names the URI, the cause and the remedy, fit to be shown as it is."""


class NotFoundError(StorageError):
    """Answer of a store that holds nothing at the URI: no such object, no such folder, or an empty folder."""


class TooLargeError(StorageError):
    """Refusal to fetch an object that has more bytes than the caller's limit."""


class DamagedError(StorageError):
    """Content of an object is not what it should be."""


class TransientStorageError(StorageError):
    """Failure for a transient cause (network, busy store) that outlasted all retries. A later run may succeed."""


# Errors that name the object as their cause: the same request fails again until the object changes. The cause of every
# other StorageError, such as denied access, is elsewhere, so the object may be readable in a later run.
OBJECT_ERRORS = (NotFoundError, TooLargeError, DamagedError)


class ShortRead(OSError):
    """Response that ended without an error, but with fewer bytes than the object has."""


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

_UNREACHABLE = "cannot connect; check the network, AWS_ENDPOINT_URL and the region"
_BROKEN = "the connection broke, or the store did not answer in time; check the network and the store, and run again"
_BUSY = "the store asks for fewer requests; run again with less concurrency"
_FAILING = "the store fails; run again when it is well"
_ABORTED = "the upload was aborted by somebody else; run again"
_TRANSIENT = (_UNREACHABLE, _BROKEN, _BUSY, _FAILING, _ABORTED)

# Meaning and remedy of each code. A code is botocore's (`NoSuchBucket`), pyarrow's (`NO_SUCH_BUCKET`; compared without
# case and underscores), the HTTP status of an answer without a body, or the name of the errno or exception.
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
    "incompletereaderror": _BROKEN,
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
    "conditionalrequestconflict": _BUSY,  # two conditional puts in the same moment
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
    "arrowinvalid": "S3 clients cannot name an object with an empty, '.' or '..' part in its path; rename it",
    "importerror": "a package that speaks this scheme is not installed; install the one that the message names",
}


def error_code(error: BaseException | None) -> str:
    """Return the code by which a client's error is classified: the store's own, else that of the errno or exception."""
    if isinstance(error, ClientError):
        return str(error.response["Error"]["Code"])
    if match := re.search(r"AWS Error (?:UNKNOWN \(HTTP status (\d+)\)|(\w+))", str(error)):
        return match[1] or match[2]
    if isinstance(error, OSError) and error.errno:
        return errno.errorcode.get(error.errno, type(error).__name__)
    return type(error).__name__


def advice_for(error: BaseException | None) -> str | None:
    """Return what a client's error means and what to do about it; None if its code is unknown."""
    return _ADVICE.get(error_code(error).lower().replace("_", ""))


def is_transient(error: BaseException | None) -> bool:
    """Return whether a retry may succeed. A StorageError is final: whoever raised it has made the retries."""
    return not isinstance(error, StorageError) and advice_for(error) in _TRANSIENT


def is_unreachable(error: BaseException | None) -> bool:
    """Return whether no connection to the store could be made."""
    return advice_for(error) == _UNREACHABLE

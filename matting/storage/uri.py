"""URIs of files and folders: joined, resolved and taken apart, without contacting a store.

A URI is a local path, `file://path`, `s3://bucket/key`, or has any other scheme that fsspec knows (`memory://`,
`gs://`, ...). The text after the scheme is taken literally, as names are stored: nothing is percent-decoded, and `#`
and `?` are ordinary characters. A key is a path relative to a URI, with '/' between its parts.
"""

import re
from pathlib import Path

from matting.storage.errors import StorageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/@]*:[^/]*@")


def split_uri(uri: str) -> tuple[str, str]:
    """Return the scheme in lower case ("file" for a plain path) and the text after it.

    Raises:
        StorageError: The URI contains a password.
    """
    match = _SCHEME.match(uri)
    if not match:
        return "file", uri
    refuse_password(uri)
    return match[1].lower(), uri[match.end() :]


def is_local(uri: str) -> bool:
    """Return whether a URI names a place in the local file system."""
    return split_uri(uri)[0] == "file"


def join_uri(uri: str, key: str) -> str:
    """Return the URI of a key below `uri`.

    Raises:
        StorageError: The key has a `..` part, which would lead out of `uri`.
    """
    if ".." in key.split("/"):
        raise StorageError(f"Key {key!r} has a '..' part and would lead out of {uri}; rename the file.")
    return f"{uri.rstrip('/')}/{key}"


def resolve_uri(folder: str, uri: str) -> str:
    """Return the URI that a table in `folder` refers to by `uri`: a relative path is relative to the folder.

    Args:
        folder: Folder of the table as a URI that ends in '/', or "".
        uri: URI, absolute path or relative path, as the table has it.
    """
    return uri if _SCHEME.match(uri) or uri.startswith("/") else folder + uri


def default_key(folder: str, uri: str) -> str:
    """Return the key of a URI to which a table in `folder` gives none.

    The key is the path below the folder; for a URI elsewhere, all of it without scheme and leading slashes.
    """
    return split_uri(uri.removeprefix(folder))[1].lstrip("/")


def absolute_uri(uri: str) -> str:
    """Return a local path as an absolute path, and any other URI unchanged. Ray's workers run in another folder."""
    return uri if "://" in uri else str(Path(uri).absolute())


def absolute_uris(data: str) -> str:
    """Return comma-separated URIs with local paths made absolute. The name "synthetic" is no path and stays."""
    return (
        data if data == "synthetic" else ",".join(absolute_uri(uri.strip()) for uri in data.split(",") if uri.strip())
    )


def refuse_password(uri: str) -> None:
    """Raise StorageError if a URI contains a password: URIs are written to logs, ledgers, pages and Ray's records."""
    if password := _PASSWORD.match(uri):
        raise StorageError(
            f"{password[1]}…@{uri[password.end() :]} has a password in it, which would be written down wherever the URI"
            " is. Take it out, and give it to the store's own client: for fsspec's, FSSPEC_<SCHEME>_PASSWORD or its "
            "configuration file; for S3, AWS_PROFILE, AWS_SECRET_ACCESS_KEY or a role."
        )

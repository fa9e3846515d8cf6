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

# Query parameters of presigned URLs: those of S3, Google and CloudFront, and of Azure's shared access signatures.
_SIGNATURES = {"x-amz-signature", "x-goog-signature", "signature", "sig"}
_AZURE = {"sv", "ss", "srt", "sp", "st", "se", "spr", "sip", "sr", "skoid", "sktid", "skt", "ske", "sks", "skv", "sdd"}
_SIGNING = _SIGNATURES | _AZURE | {"expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid"}
_SIGNING_PREFIXES = ("x-amz-", "x-goog-")
_QUERY = re.compile(r"\?([^\s?'\"<>()\[\]]+)")


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

    The key is the path below the folder; for a URI elsewhere, all of it without scheme and leading slashes. The
    signature of a presigned URL is no part of it.
    """
    return split_uri(unsigned_uri(uri).removeprefix(folder))[1].lstrip("/")


def unsigned_uri(uri: str) -> str:
    """Return a presigned URL without the parameters of its signature, which are secret and change when it is renewed.

    Parameters that select the content stay. Any other URI is returned unchanged.
    """
    if not uri.lower().startswith(("http://", "https://")):
        return uri
    place, mark, query = uri.partition("?")
    return place + _unsigned_query(mark + query)


def redact_signatures(text: str) -> str:
    """Return a text with all presigned URLs in it as `unsigned_uri` returns them, fit for logs and ledgers."""
    if "http" not in text.lower():
        return text
    return _QUERY.sub(lambda match: _unsigned_query(match[0]), text)


def _unsigned_query(query: str) -> str:
    """Return a query, which begins with '?' or is empty, without the parameters of its signature."""
    parameters = query[1:].split("&")
    names = [parameter.partition("=")[0].lower() for parameter in parameters]
    if not _SIGNATURES.intersection(names):
        return query
    kept = [
        parameter
        for parameter, name in zip(parameters, names, strict=True)
        if name not in _SIGNING and not name.startswith(_SIGNING_PREFIXES)
    ]
    return "?" + "&".join(kept) if kept else ""


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

"""URIs of files and folders: joined, resolved and taken apart, without contacting a store.

A URI is a local path, `file://path`, `s3://bucket/key`, or has any other scheme that fsspec knows (`memory://`,
`gs://`, ...). The text after the scheme is taken literally, as names are stored: nothing is percent-decoded, and `#`
and `?` are ordinary characters. A key is a path relative to a URI, with '/' between its parts. `range://` names a part
of another file: `range://512+1234/s3://bucket/photos.tar` has 1,234 bytes, from offset 512.
"""

import re
from pathlib import Path
from typing import NamedTuple

from matting.storage.errors import StorageError

# Keys that no output can have, since they would lead out of its folder: with an empty, '.' or '..' part, or a NUL.
IMPOSSIBLE_KEY = r"(^|/)\.{0,2}(/|$)|\x00"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_RANGE = re.compile(r"range://(\d+)\+(\d+)/(.+)", re.DOTALL)
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # what Python makes of bytes that are not UTF-8
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


def is_utf8(name: str) -> bool:
    """Return whether a file's name, as `os.fsdecode` or `tarfile` decoded it, is UTF-8."""
    return name.isascii() or not _SURROGATE.search(name)


def escape_name(name: str) -> str:
    """Return a file's name with its bytes that are not UTF-8 written as in `caf\\xe9.jpg`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def resolve_uri(folder: str, uri: str) -> str:
    """Return the URI that a table in `folder` refers to by `uri`: a relative path is relative to the folder.

    The parts '.' and '..' at the start of a relative path are resolved, because object stores do not know them.

    Args:
        folder: Folder of the table as a URI that ends in '/', or "".
        uri: URI, absolute path or relative path, as the table has it.
    """
    if _SCHEME.match(uri) or uri.startswith("/"):
        return uri
    while (step := uri.partition("/")[0]) in (".", "..") and uri != step:
        if step == "..":
            parent = folder.rstrip("/").rpartition("/")[0]
            if not parent or parent.endswith(":/"):  # above the root or the bucket
                break
            folder = parent + "/"
        uri = uri.partition("/")[2].lstrip("/")
    return folder + uri


def default_key(folder: str, uri: str) -> str:
    """Return the key of a URI to which a table in `folder` gives none.

    The key is the path below the folder; for a URI elsewhere, all of it without scheme. Empty and '.' parts of the
    path, and the signature of a presigned URL, are no part of it.
    """
    parts = split_uri(unsigned_uri(uri).removeprefix(folder))[1].split("/")
    return "/".join(part for part in parts if part not in ("", "."))


class Span(NamedTuple):
    """A part of a file.

    Attributes:
        offset: Number of bytes before it.
        size: Number of bytes in it.
    """

    offset: int
    size: int


def range_uri(uri: str, span: Span) -> str:
    """Return the URI of a part of a file, which `store.read_bytes` reads."""
    return f"range://{span.offset}+{span.size}/{uri}"


def split_range(uri: str) -> tuple[str, Span | None]:
    """Return the URI of the file, and the part of it that `range_uri` named; None for the whole file."""
    match = _RANGE.fullmatch(uri)
    return (match[3], Span(int(match[1]), int(match[2]))) if match else (uri, None)


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
    """Return a local path as an absolute path, with a leading `~` expanded, and any other URI unchanged.

    Ray's workers run in another folder, and shells leave the `~` of `--option=~/photos` as it is.
    """
    if "://" in uri:
        return uri
    try:
        return str(Path(uri).expanduser().absolute())
    except RuntimeError:  # no user has this name, so it is a file's
        return str(Path(uri).absolute())


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

"""Names of output files: every key of a collection has one, no two share one, and none leads out of the folder."""

import hashlib
import re

_SHORTENED = re.compile(r"~[0-9a-f]{32}")


class BadKey(ValueError):
    """A key that cannot name an output. The message is the reason, on one line."""


def output_name(kind: str, key: str, suffix: str, longest_part: int | None) -> str:
    """Return the path of an output below the output folder: ``("alpha", "x/a.jpg", "png")`` -> ``alpha/x/a.jpg.png``.

    Distinct keys have distinct names, and no name is a folder of another. A part of the path that is too long becomes
    its first bytes, '~' and half of its SHA-256. Where names are limited, a part that looks like a shortened one, or a
    folder that ends like the files, is shortened as well; two names are equal only if hashes collide at 128 bits.

    Args:
        kind: Folder of the outputs, "alpha" or "cutout".
        key: Key of the photo.
        suffix: Suffix of the file, without a dot.
        longest_part: Limit of a part of the path in bytes, 255 on most file systems. None on object storage, where
            paths have no parts: names are not limited there, and ``a.png`` may exist beside ``a.png/b.png``.

    Raises:
        BadKey: The key has an empty, '.' or '..' part, which would lead out of the output folder or to the output of
            another key, or a NUL, which no path can have.
    """
    parts = key.split("/")
    if not {"", ".", ".."}.isdisjoint(parts):
        raise BadKey(f"key {key!r} has an empty, '.' or '..' part, so it cannot name an output; rename the photo")
    if "\0" in key:
        raise BadKey(f"key {key!r} has a NUL character, so it cannot name an output; rename the photo")
    ending = f".{suffix}"
    if longest_part is None:
        return f"{kind}/{key}{ending}"
    folders = [_shorten(part, "", longest_part, part.endswith(ending)) for part in parts[:-1]]
    return "/".join([kind, *folders, _shorten(parts[-1], ending, longest_part, False)])


def _shorten(part: str, ending: str, longest: int, is_ambiguous: bool) -> str:
    name = part.encode()
    if len(name) + len(ending) <= longest and not is_ambiguous and not _SHORTENED.fullmatch(part[-33:]):
        return part + ending
    tail = f"~{hashlib.sha256(name).hexdigest()[:32]}{ending}"
    return name[: longest - len(tail)].decode(errors="ignore") + tail

"""Find the pairs of a raw dataset: which image goes with which matte.

    URI of a dataset -> keys of its files -> layout, by the names of folders -> pairs, by name; unpaired files, and why

A folder layout is one or more `_Rule`s. Each has two templates of paths, which an image and its matte fill in with the
same fields. A manifest is a table that names both. Files are never paired by their position in a listing.

This module opens no file but a manifest, so whether an image can be decoded shows later.
"""

import hashlib
import json
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast, get_args

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from matting.data.images import IMAGE_SUFFIXES
from matting.messages import first_few
from matting.storage import store
from matting.storage.uri import default_key, join_uri, resolve_uri

Split = Literal["train", "val", "test"]
Unpaired = list[tuple[str, str]]


class PairsError(ValueError):
    """A raw dataset cannot be used. The message says what was found, what was expected, and what to do."""


@dataclass(frozen=True, kw_only=True)
class RawPairOptions:
    """Options of every job that reads raw pairs.

    Args:
        layout: Folder layout of raw pairs, by its name; "auto" detects it. The error about an unknown name lists all.
        split_seed: Random seed of the 80/10/10 split by subject.
        max_unpaired_fraction: Fraction of files without a partner, in [0, 1], above which the dataset is refused.
        max_rejected_fraction: Fraction of pairs that cannot be decoded, in [0, 1], above which the job fails.
    """

    layout: str = "auto"
    split_seed: int = 0
    max_unpaired_fraction: float = 0.01
    max_rejected_fraction: float = 0.01


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its matte. `key` is the path of the image relative to the dataset's root."""

    key: str
    image_uri: str
    matte_uri: str
    split: Split


@dataclass(frozen=True, slots=True)
class Pairing:
    """Pairs of a dataset, and its unpaired files as (key, reason); both sorted by key.

    The fingerprint changes with every name, split and file size; that of a manifest with every name, split and URI.
    """

    layout: str
    pairs: tuple[Pair, ...]
    unpaired: tuple[tuple[str, str], ...]
    fingerprint: str


@dataclass(frozen=True)
class _Rule:
    """Templates of the paths of an image and its matte, without suffixes.

    The field `{name}` may hold '/', other fields may not. Where `split` is None, a hash decides the split: of the
    filled-in template `group`, or else of the image's key.
    """

    image: str
    matte: str
    split: Split | None = None
    group: str | None = None

    @cached_property
    def folders(self) -> tuple[str, str]:
        """Folders of the images and of the mattes: the fixed starts of the templates."""
        return self.image.partition("{")[0], self.matte.partition("{")[0]

    @cached_property
    def image_pattern(self) -> re.Pattern[str]:
        """Pattern that an image's path without its suffix matches."""
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.image))
        return re.compile(pattern.replace("(?P<name>[^/]+)", "(?P<name>.+)"), re.DOTALL)


_FOLDER_LAYOUTS = {
    "aisegment": (_Rule("clip_img/{id}/clip_{n}/{name}", "matting/{id}/matting_{n}/{name}", group="{id}/{n}"),),
    "p3m": (
        _Rule("train/blurred_image/{name}", "train/mask/{name}", "train"),
        _Rule("validation/P3M-500-P/blurred_image/{name}", "validation/P3M-500-P/mask/{name}", "val"),
        _Rule("validation/P3M-500-NP/original_image/{name}", "validation/P3M-500-NP/mask/{name}", "test"),
    ),
    "ppm": (_Rule("image/{name}", "matte/{name}"),),
    "folders": (_Rule("images/{name}", "mattes/{name}"),),
}
LAYOUTS = (*_FOLDER_LAYOUTS, "manifest")

_MANIFEST_SUFFIXES = (".parquet", ".csv")
_MANIFEST_REQUIRED = ("image", "matte")
_MANIFEST_OPTIONAL = ("key", "split", "group")
_MANIFEST_COLUMNS = (*_MANIFEST_REQUIRED, *_MANIFEST_OPTIONAL)

_DEFAULTS = RawPairOptions()


def find_pairs(uri: str, options: RawPairOptions = _DEFAULTS) -> Pairing:
    """Pair the images and mattes of a dataset: a folder, or the file of a manifest.

    Hidden files (`._x`, `.DS_Store`, everything in a folder `.x`) and files outside the layout's folders are ignored.
    Every other file without a partner is listed as unpaired. So are files that are no images by their suffix, and
    images that differ in their suffix only, since the matte could belong to either.

    Args:
        uri: URI of the dataset.
        options: Layout, random seed of the split where the dataset has none of its own, and `max_unpaired_fraction`.

    Raises:
        PairsError: No layout fits, nothing pairs, too many files are unpaired, or a manifest is malformed.
        StorageError: The dataset cannot be listed, or the manifest cannot be read.
    """
    layout = options.layout
    if layout not in ("auto", *LAYOUTS):
        raise PairsError(f"There is no layout {layout!r}; choose one of auto, {', '.join(LAYOUTS)}.")
    if layout == "manifest" or (layout == "auto" and uri.lower().endswith(_MANIFEST_SUFFIXES)):
        layout = "manifest"
        pairs, unpaired = _pair_manifest(uri, options.split_seed)
        sizes = {}
    else:
        files = store.list_files(uri)
        sizes = {join_uri(uri, file.key): file.size for file in files if ".." not in file.key.split("/")}
        keys = [file.key for file in files if "/." not in f"/{file.key}"]
        if layout == "auto":
            layout = _detect(uri, keys)
        found = [_pair_by_name(uri, keys, rule, options.split_seed) for rule in _FOLDER_LAYOUTS[layout]]
        pairs = [pair for of_rule, _ in found for pair in of_rule]
        unpaired = [file for _, of_rule in found for file in of_rule]
    unpaired.sort()
    _check_enough(uri, layout, len(pairs), unpaired, options.max_unpaired_fraction)
    pairs.sort(key=lambda pair: pair.key)
    return Pairing(layout, tuple(pairs), tuple(unpaired), _fingerprint(pairs, sizes))


def split_of(group: str, seed: int) -> Split:
    """Return the split of a group: 80 % train, 10 % val, 10 % test.

    The first 8 bytes of SHA-256("<seed>/<group>"), as a big-endian number modulo 10, decide. So the split depends
    neither on other groups, nor on the machine or the run.
    """
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    tenth = int.from_bytes(digest[:8], "big") % 10
    return "train" if tenth < 8 else "val" if tenth == 8 else "test"


def _fingerprint(pairs: list[Pair], sizes: dict[str, int]) -> str:
    # The files of a manifest have no known size; their URIs take its place.
    rows = [
        (pair.key, pair.split, sizes.get(pair.image_uri, pair.image_uri), sizes.get(pair.matte_uri, pair.matte_uri))
        for pair in pairs
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _below(keys: list[str], folder: str) -> list[str]:
    """Return the keys that begin with `folder`, which ends in '/'. The keys are sorted."""
    # '0' is the character after '/'.
    return keys[bisect_left(keys, folder) : bisect_left(keys, folder[:-1] + "0")]


def _detect(uri: str, keys: list[str]) -> str:
    present = {folder for rules in _FOLDER_LAYOUTS.values() for rule in rules for folder in rule.folders}
    present = {folder for folder in present if _below(keys, folder)}
    fitting = [
        name for name, rules in _FOLDER_LAYOUTS.items() if any(present.issuperset(rule.folders) for rule in rules)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise PairsError(f"{uri} fits more than one layout: {', '.join(fitting)}. Choose one with --layout.")
    found = sorted({key.partition("/")[0] + "/" for key in keys if "/" in key})
    expected = [f"{name} ({' + '.join(rules[0].folders)})" for name, rules in _FOLDER_LAYOUTS.items()]
    raise PairsError(
        f"{uri} fits no layout. Its folders: {first_few(found) or 'none'}. Expected: {', '.join(expected)}, or the URI "
        f"of a manifest ({' or '.join(_MANIFEST_SUFFIXES)} with the columns {', '.join(_MANIFEST_REQUIRED)}). Correct "
        "the URI, or force a layout with --layout."
    )


def _pair_by_name(uri: str, keys: list[str], rule: _Rule, seed: int) -> tuple[list[Pair], Unpaired]:
    # Both map the path of a matte, without its suffix, to keys.
    images, mattes = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    groups: dict[str, str] = {}
    unpaired: Unpaired = []
    image_folder, matte_folder = rule.folders
    for key in _below(keys, image_folder) + _below(keys, matte_folder):
        stem, _, suffix = key.rpartition(".")
        if suffix.lower() not in IMAGE_SUFFIXES:
            unpaired.append((key, f"is not an image by its suffix; expected .{', .'.join(IMAGE_SUFFIXES)}"))
        elif key.startswith(matte_folder):
            mattes[stem].append(key)
        elif match := rule.image_pattern.fullmatch(stem):
            images[rule.matte.format_map(match.groupdict())].append(key)
            groups[key] = rule.group.format_map(match.groupdict()) if rule.group else key
        else:
            unpaired.append((key, f"is not where this layout has its images: {rule.image}"))

    pairs = []
    for stem in images.keys() | mattes.keys():
        image_keys, matte_keys = images[stem], mattes[stem]
        if len(image_keys) == len(matte_keys) == 1:
            (key,), (matte_key,) = image_keys, matte_keys
            split = rule.split or split_of(groups[key], seed)
            pairs.append(Pair(key, join_uri(uri, key), join_uri(uri, matte_key), split))
        elif not matte_keys:
            unpaired += [(key, f"has no matte; looked for {stem}.png") for key in image_keys]
        elif not image_keys:
            unpaired += [(key, f"has no image of its name in {image_folder}") for key in matte_keys]
        else:
            reason = f"is ambiguous: {', '.join(image_keys)} could go with {', '.join(matte_keys)}"
            unpaired += [(key, reason) for key in image_keys + matte_keys]
    return pairs, unpaired


def _pair_manifest(uri: str, seed: int) -> tuple[list[Pair], Unpaired]:
    columns = _read_manifest(uri)
    folder = uri[: uri.rfind("/") + 1]
    pairs: list[Pair] = []
    unpaired: Unpaired = []
    for number in range(len(columns["image"])):
        row = {name: values[number] or None for name, values in columns.items()}
        image, matte = row["image"], row["matte"]
        key = row.get("key") or (image and default_key(folder, resolve_uri(folder, image)))
        if not image or not key:
            unpaired.append((f"row {number + 1}", "has no image"))
            continue
        if key.startswith("/") or ".." in key.split("/"):
            raise PairsError(
                f"Row {number + 1} of {uri} has the key {key!r}; give it a relative one in a column `key`."
            )
        split = cast("Split | None", row.get("split")) or split_of(row.get("group") or key, seed)
        if split not in get_args(Split):
            names = ", ".join(get_args(Split))
            raise PairsError(f"Row {number + 1} of {uri} has the split {split!r}; expected one of {names}.")
        if matte:
            pairs.append(Pair(key, resolve_uri(folder, image), resolve_uri(folder, matte), split))
        else:
            unpaired.append((key, "has no matte in the manifest"))
    repeated = [key for key, count in Counter(pair.key for pair in pairs).items() if count > 1]
    if repeated:
        raise PairsError(
            f"{uri} has more than one row for {first_few(repeated)}; keep one, or tell them apart by `key`."
        )
    return pairs, unpaired


def _read_manifest(uri: str) -> dict[str, list[str | None]]:
    source = pa.BufferReader(store.read_bytes(uri))
    try:
        if uri.lower().endswith(".csv"):
            as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_MANIFEST_COLUMNS, pa.string()))
            table = pyarrow.csv.read_csv(source, convert_options=as_text)
        else:
            table = pyarrow.parquet.read_table(source)
        columns = {name: table[name].cast(pa.string()) for name in _MANIFEST_COLUMNS if name in table.column_names}
    except pa.ArrowException as error:
        raise PairsError(
            f"{uri} cannot be read as a manifest; expected texts in Parquet, or in CSV with a header: {error}"
        ) from error
    unknown = sorted(set(table.column_names) - set(_MANIFEST_COLUMNS))
    missing = sorted(set(_MANIFEST_REQUIRED) - set(table.column_names))
    if unknown or missing:
        raise PairsError(
            f"{uri} lacks the columns [{', '.join(missing)}] and has the unknown columns [{', '.join(unknown)}]; "
            f"expected {', '.join(_MANIFEST_REQUIRED)} and optionally {', '.join(_MANIFEST_OPTIONAL)}."
        )
    return {name: column.to_pylist() for name, column in columns.items()}


def _check_enough(uri: str, layout: str, paired: int, unpaired: Unpaired, max_unpaired_fraction: float) -> None:
    first = first_few([f"{key!r} {reason}" for key, reason in unpaired])
    if not paired:
        rest = f"{len(unpaired)} files did not pair: {first}" if unpaired else "its folders are missing or empty"
        raise PairsError(f"{uri} holds no pairs of the layout {layout}; {rest}. Correct the URI or the layout.")
    fraction = len(unpaired) / (paired + len(unpaired))
    if fraction > max_unpaired_fraction:
        raise PairsError(
            f"{uri} holds {paired} pairs, and {len(unpaired)} files that do not pair ({fraction:.1%}, more than the "
            f"{max_unpaired_fraction:.1%} that are allowed): {first}. Correct them, or raise --max-unpaired-fraction."
        )

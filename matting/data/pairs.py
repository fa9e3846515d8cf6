"""Find the pairs of a raw dataset: which image goes with which matte.

    URI of a dataset -> keys of its files -> layout, by the names of folders -> pairs, by name; unpaired files, and why

A folder layout is one or more `_Rule`s. Each has two templates of paths, which an image and its matte fill in with the
same fields. A tar archive counts as a folder, and may hold WebDataset's samples instead. A manifest is a table that
names both. Files are never paired by their position in a listing.

This module opens no file but a manifest, so whether an image can be decoded shows later.
"""

import hashlib
import json
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, cast, get_args

from matting.data.images import IMAGE_SUFFIXES
from matting.data.matching import match_group, with_look_alikes
from matting.data.mattes import MatteReading
from matting.data.sources.listing import list_collection
from matting.data.sources.tables import TABLE_SUFFIXES, read_texts
from matting.data.sources.webdataset import pair_samples
from matting.messages import first_few, normalized, tell_apart
from matting.storage.uri import default_key, join_uri, resolve_uri, split_range

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
        matte_range: Stored value that is opaque in all mattes: 1, 255, 65535 or any other; "auto" takes the largest of
            each file's bit depth.
        invert: Whether the mattes show the background, and are to be inverted.
        check_mattes: What happens when a sample shows that the mattes of a dataset are wrong as a whole: "stop" ends
            the job, "warn" prints what was found and goes on.
    """

    layout: str = "auto"
    split_seed: int = 0
    max_unpaired_fraction: float = 0.01
    max_rejected_fraction: float = 0.01
    matte_range: int | Literal["auto"] = "auto"
    invert: bool = False
    check_mattes: Literal["stop", "warn"] = "stop"

    def __post_init__(self) -> None:
        if self.matte_range != "auto" and not 1 <= self.matte_range <= 65535:
            raise ValueError(f"--matte-range takes auto or a number from 1 to 65535; is {self.matte_range}")

    @property
    def reading(self) -> MatteReading:
        """How the stored values of mattes become alphas."""
        return MatteReading(None if self.matte_range == "auto" else self.matte_range, self.invert)


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
LAYOUTS = (*_FOLDER_LAYOUTS, "webdataset", "manifest")

_MANIFEST_REQUIRED = ("image", "matte")
_MANIFEST_OPTIONAL = ("key", "split", "group")

_DEFAULTS = RawPairOptions()


def find_pairs(uri: str, options: RawPairOptions = _DEFAULTS) -> Pairing:
    """Pair the images and mattes of a dataset: a folder, a tar archive or a folder of these, or a manifest.

    The layout `webdataset` of archives is described in `webdataset`; a folder has it only if it is asked for.

    Hidden files (`._x`, `.DS_Store`, everything in a folder `.x`) and files outside the layout's folders are ignored.
    Every other file without a partner is listed as unpaired. So are files that are no images by their suffix, and
    images that differ in their suffix only, since the matte could belong to either.

    Args:
        uri: URI of the dataset.
        options: Layout, random seed of the split where the dataset has none of its own, and `max_unpaired_fraction`.

    Raises:
        PairsError: No layout fits, nothing pairs, too many files are unpaired, or a manifest is malformed.
        TableError: A file of the manifest is malformed.
        StorageError: The dataset cannot be listed, or the manifest cannot be read.
    """
    layout = options.layout
    if layout not in ("auto", *LAYOUTS):
        raise PairsError(f"There is no layout {layout!r}; choose one of auto, {', '.join(LAYOUTS)}.")
    if layout == "manifest" or (layout == "auto" and uri.rstrip("/").lower().endswith(TABLE_SUFFIXES)):
        layout = "manifest"
        pairs, unpaired = _pair_manifest(uri, options.split_seed)
        sizes = {}
    else:
        listing = list_collection(uri)
        names, uris, lengths = (listing.files[name].to_pylist() for name in ("key", "uri", "size"))
        sizes = dict(zip(uris, lengths, strict=True))
        keys = [key for key in names if "/." not in f"/{key}"]
        has_archives = any(split_range(place)[1] for place in uris) or not uris
        if layout == "auto":
            layout = _detect(uri, keys, has_archives)
        if layout == "webdataset":
            pairs, unpaired = _pair_samples(uri, keys, options.split_seed)
            folders: tuple[str, ...] = ("",)
        else:
            found = [_pair_by_name(uri, keys, rule, options.split_seed) for rule in _FOLDER_LAYOUTS[layout]]
            pairs = [pair for of_rule, _ in found for pair in of_rule]
            unpaired = [file for _, of_rule in found for file in of_rule]
            folders = tuple(folder for rule in _FOLDER_LAYOUTS[layout] for folder in rule.folders)
        unpaired += [
            (key, reason)
            for key, reason in listing.left_out
            if key.startswith((*folders, uri.rstrip("/"))) and not key.endswith("/")
        ]
        if has_archives:  # files in them have other URIs than those of folders
            places = {join_uri(uri, key): place for key, place in zip(names, uris, strict=True)}
            pairs = [
                replace(pair, image_uri=places[pair.image_uri], matte_uri=places[pair.matte_uri]) for pair in pairs
            ]
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


def _detect(uri: str, keys: list[str], has_archives: bool) -> str:
    present = {folder for rules in _FOLDER_LAYOUTS.values() for rule in rules for folder in rule.folders}
    present = {folder for folder in present if _below(keys, folder)}
    fitting = [
        name for name, rules in _FOLDER_LAYOUTS.items() if any(present.issuperset(rule.folders) for rule in rules)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise PairsError(f"{uri} fits more than one layout: {', '.join(fitting)}. Choose one with --layout.")
    if has_archives:
        return "webdataset"
    found = sorted({key.partition("/")[0] + "/" for key in keys if "/" in key})
    expected = [f"{name} ({' + '.join(rules[0].folders)})" for name, rules in _FOLDER_LAYOUTS.items()]
    raise PairsError(
        f"{uri} fits no layout. Its folders: {first_few(found) or 'none'}. Expected: {', '.join(expected)}, tar "
        f"archives of WebDataset's samples, or the URI of a manifest ({' or '.join(TABLE_SUFFIXES)} with the "
        f"columns {', '.join(_MANIFEST_REQUIRED)}). Correct the URI, or force a layout with --layout."
    )


def _pair_by_name(uri: str, keys: list[str], rule: _Rule, seed: int) -> tuple[list[Pair], Unpaired]:
    # A group holds what could go together: an image, mattes of its name, and mattes named as jobs/predict.py names them
    # (a.jpg.png). Groups are by normalized names, since systems store accents as one character or two.
    images, mattes = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    stems: dict[str, tuple[str, str]] = {}  # image key -> the two stems that its matte may have
    group_of_name: dict[str, str] = {}  # second stem -> group
    splits: dict[str, Split] = {}
    matte_keys: list[str] = []
    unpaired: Unpaired = []
    image_folder, matte_folder = rule.folders
    for key in _below(keys, image_folder) + _below(keys, matte_folder):
        stem, _, suffix = key.rpartition(".")
        if suffix.lower() not in IMAGE_SUFFIXES:
            unpaired.append((key, f"is not an image by its suffix; expected .{', .'.join(IMAGE_SUFFIXES)}"))
        elif key.startswith(matte_folder):
            matte_keys.append(key)
        elif match := rule.image_pattern.fullmatch(stem):
            matte_stem = rule.matte.format_map(match.groupdict())
            stems[key] = (matte_stem, f"{matte_stem}.{suffix}")
            images[normalized(matte_stem)].append(key)
            group_of_name[normalized(stems[key][1])] = normalized(matte_stem)
            splits[key] = rule.split or split_of(rule.group.format_map(match.groupdict()) if rule.group else key, seed)
        else:
            unpaired.append((key, f"is not where this layout has its images: {rule.image}"))
    for key in matte_keys:
        stem = normalized(key.rpartition(".")[0])
        mattes[stem if stem in images else group_of_name.get(stem, stem)].append(key)

    pairs = []
    for group in images.keys() | mattes.keys():
        found, left_images, left_mattes = match_group(images[group], mattes[group], stems)
        pairs += [Pair(key, join_uri(uri, key), join_uri(uri, matte), splits[key]) for key, matte in found]
        if left_images and left_mattes:
            reason = f"is ambiguous: {tell_apart(left_images)} could go with {tell_apart(left_mattes)}"
            unpaired += [(key, reason) for key in left_images + left_mattes]
            continue
        unpaired += [(key, f"has no matte; looked for {stems[key][0]}.png") for key in left_images]
        unpaired += [(key, f"has no image of its name in {image_folder}") for key in left_mattes]
    return pairs, with_look_alikes(unpaired, stems)


def _pair_samples(uri: str, keys: list[str], seed: int) -> tuple[list[Pair], Unpaired]:
    pairs, unpaired = pair_samples(keys)
    return [Pair(key, join_uri(uri, key), join_uri(uri, matte), split_of(key, seed)) for key, matte in pairs], unpaired


def _pair_manifest(uri: str, seed: int) -> tuple[list[Pair], Unpaired]:
    uri = uri.rstrip("/")
    columns = read_texts(uri, _MANIFEST_REQUIRED, _MANIFEST_OPTIONAL).to_pydict()
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

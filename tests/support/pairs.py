"""Datasets of synthetic people, raw and packed, written and read for tests."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np

from matting.data import images, shards
from matting.data.dataset import PairDataset
from matting.data.pairs import split_of
from matting.data.rows import Example
from matting.data.synthetic import draw_person
from matting.storage import store
from matting.storage.uri import join_uri

Files = Mapping[str, tuple[bytes, bytes]]  # name without suffix -> bytes of the image and of the matte


def encoded_people(count: int, width: int = 24, height: int = 32) -> dict[str, tuple[bytes, bytes]]:
    """Return the encoded images and mattes of synthetic people."""
    people = [draw_person(0, number, width, height) for number in range(count)]
    return {
        f"p/{number:02}": (images.encode_jpeg(image), images.encode_png(alpha))
        for number, (image, alpha) in enumerate(people)
    }


def key_of(name: str) -> str:
    """Return the key of a pair that `write_raw` or `write_packed` wrote."""
    return f"images/{name}.jpg"


def write_raw(root: str, files: Files) -> str:
    """Write pairs in the `folders` layout."""
    for name, (image, matte) in files.items():
        store.write_bytes(join_uri(root, key_of(name)), image)
        store.write_bytes(join_uri(root, f"mattes/{name}.png"), matte)
    return root


def write_packed(root: str, files: Files) -> str:
    """Write the same pairs in parts of 10 rows, with the bytes and splits of raw pairs."""
    rows = []
    for name, (image, matte) in files.items():
        row = {"key": key_of(name), "split": split_of(key_of(name), 0), "image": image, "matte": matte}
        with suppress(images.BadImage):
            row |= zip(("width", "height"), images.image_size(image), strict=True)
        rows.append(row)
    rows.sort(key=lambda row: (row["split"], row["key"]))
    parts = [rows[start : start + 10] for start in range(0, len(rows), 10)]
    described = []
    for number, part in enumerate(parts):
        data = shards.encode_part(part, shards.PartFooter("", ()))
        store.write_bytes(join_uri(root, shards.part_name(number)), data)
        described.append(
            {"name": shards.part_name(number), "rows": len(part), "sha256": hashlib.sha256(data).hexdigest()}
        )
    shards.write_description(root, {"parts": described, "unpaired": [], "rejected": []})
    return root


PAIR_WRITERS = [write_raw, write_packed]
PairWriter = Callable[[str, Files], str]


def examples_by_key(pairs: PairDataset, size: int | None = None) -> dict[str, Example]:
    """Decode all examples of all splits, by key."""
    return {example.key: example for rows in pairs.splits.values() for example in rows.examples(size)}


def assert_same_example(found: Example, expected: Example) -> None:
    """Compare keys, errors and pixels."""
    assert (found.key, found.error) == (expected.key, expected.error)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.alpha, expected.alpha)

"""Output names: distinct keys have distinct names, whatever the keys are."""

import hashlib
import posixpath
import re
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from matting.results.output_names import BadKey, output_name


def test_output_keeps_the_whole_key():
    assert output_name("alpha", "x/a.jpg", "png", 255) == "alpha/x/a.jpg.png"
    assert output_name("cutout", ".a %20#?é.PNG", "webp", 255) == "cutout/.a %20#?é.PNG.webp"
    assert output_name("alpha", "y" * 251, "png", 255) == "alpha/" + "y" * 251 + ".png"


def test_long_part_becomes_its_start_and_hash():
    part = "é" * 250
    digest = hashlib.sha256(part.encode()).hexdigest()[:32]
    assert output_name("alpha", part, "png", 255) == f"alpha/{'é' * 109}~{digest}.png"  # 218 + 33 + 4 bytes
    assert output_name("alpha", f"{part}/a", "png", 255) == f"alpha/{'é' * 111}~{digest}/a.png"
    assert output_name("alpha", part, "png", None) == f"alpha/{part}.png"


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", ".", "./a", "a/.", "..", "../../etc/x", "a/../b", "a\0b", "a\n/.."]
)
def test_key_that_leaves_the_folder_is_refused(key):
    with pytest.raises(BadKey, match=r"^key .* rename the photo$") as refusal:
        output_name("alpha", key, "png", None)
    assert "\n" not in str(refusal.value)


PARTS = st.one_of(
    st.sampled_from(
        ["a", "a.jpg", "a.png", "a.jpg.png", "a.png.png", ".a", "a ", "a%20", "a#", "a?", "é", "e\u0301", "~"]
    ),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12),
    st.integers(215, 500).flatmap(
        lambda size: st.sampled_from(["x" * size, "é" * size, "😀" * size, "x" * size + ".png"])
    ),
).filter(lambda part: part not in (".", ".."))
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


def with_lookalikes(keys: Iterable[str]) -> set[str]:
    """Return the keys and others that look like the names of their outputs, with and without the suffix."""
    names = [output_name("alpha", key, "png", 255).removeprefix("alpha/") for key in keys]
    folders = [posixpath.dirname(name) + "/a" for name in names if "/" in name]
    return {*keys, *names, *(name.removesuffix(".png") for name in names), *folders}


@given(st.sets(KEYS, min_size=2, max_size=8))
@example({"x/1.jpg", "y/1.jpg", "x/1.png", "x/1.jpg.png", "x/1.jpg.png/1.jpg"})
def test_distinct_keys_have_distinct_names(keys):
    keys = with_lookalikes(with_lookalikes(keys))
    names = {output_name("alpha", key, "png", 255) for key in keys}
    assert len(names) == len(keys) == len({output_name("alpha", key, "png", None) for key in keys})
    for name in names:
        assert posixpath.normpath(name) == name
        assert name.startswith("alpha/")
        assert max(len(part.encode()) for part in name.split("/")) <= 255
        folders = {name[: slash.start()] for slash in re.finditer("/", name)}
        assert not names & folders, "a name is both a file and a folder"

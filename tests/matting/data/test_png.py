"""images: PNGs with malformed parts are read if the pixels do not need these, and refused by name if they do."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from matting.data import images
from matting.data.decoding.png import png_chunk
from matting.data.images import BadImage
from tests.matting.data.test_damage import SCENE_HWC, encoded

PLAIN = encoded("PNG")
FIRST = 33  # offset of the first chunk behind the header
SMALL_HWC = SCENE_HWC[:20, :30]
MEGABYTES = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        (b"gAMA", b"\0", "malformed"),
        (b"cHRM", bytes(10), "malformed"),
        (b"sRGB", b"", "malformed"),
        (b"cICP", b"\x0c", "malformed"),
        (b"pHYs", b"\0", "malformed"),
        (b"tRNS", b"\0", "malformed"),
        (b"iCCP", b"", "malformed"),
        (b"iCCP", b"name\0\7" + MEGABYTES, "malformed"),
        (b"iCCP", b"name\0\0" + MEGABYTES, "oversized"),
        (b"zTXt", b"Comment\0\0" + MEGABYTES, "oversized"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + MEGABYTES, "oversized"),
    ],
)
def test_parts_that_cannot_be_read_are_left_out(kind: bytes, content: bytes, problem: str) -> None:
    photo = images.decode_photo(PLAIN[:FIRST] + png_chunk(kind, content) + PLAIN[FIRST:])
    np.testing.assert_array_equal(photo.image_HWC, SCENE_HWC)
    assert photo.opacity_HW is None
    assert photo.warning == f"{problem} {kind.decode()}, which was left out"


def test_transparent_color_behind_the_pixels_does_not_count() -> None:
    end = PLAIN.index(b"IEND") - 4
    photo = images.decode_photo(PLAIN[:end] + png_chunk(b"tRNS", bytes(6)) + PLAIN[end:])
    assert photo.opacity_HW is None
    assert photo.warning == "misplaced tRNS, which was left out"


@pytest.mark.parametrize("kind", [b"CgBI", b"ABCD"])
def test_parts_that_the_pixels_need_and_nobody_knows_are_refused(kind: bytes) -> None:
    with pytest.raises(BadImage, match=f"a PNG with the chunk {kind.decode()}, which is not known here"):
        images.decode_photo(PLAIN[:FIRST] + png_chunk(kind, b"\x50\0\x20\2") + PLAIN[FIRST:])


def test_missing_palette_is_refused() -> None:
    header = struct.pack(">2I5B", 4, 2, 8, 3, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(range(4))) * 2)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    with pytest.raises(BadImage, match="damaged PNG: its palette is missing"):
        images.decode_photo(PLAIN[:8] + b"".join(png_chunk(*chunk) for chunk in chunks))


@pytest.mark.parametrize("default_image", [True, False])
def test_animation_gives_the_image_that_every_viewer_shows(default_image: bool) -> None:
    others = [Image.fromarray(255 - SMALL_HWC)] * 2
    buffer = BytesIO()
    Image.fromarray(SMALL_HWC).save(buffer, "PNG", save_all=True, append_images=others, default_image=default_image)
    data = buffer.getvalue()
    without_count = data.replace(data[FIRST : FIRST + 20], png_chunk(b"acTL", b"\0"))
    for animation in (data, without_count):
        photo = images.decode_photo(animation)
        np.testing.assert_array_equal(photo.image_HWC, SMALL_HWC)
        assert photo.warning is None

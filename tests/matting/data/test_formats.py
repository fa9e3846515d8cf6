"""images: formats are recognised by content, and files that need another package say so."""

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from matting.data import images
from matting.data.images import BadImage
from matting.data.photos import find_photos
from tests.matting.data.test_damage import SCENE_HWC, encoded


def heic(**options: object) -> bytes:
    buffer = BytesIO()
    pillow_heif.from_pillow(Image.fromarray(SCENE_HWC)).save(buffer, **options)
    return buffer.getvalue()


def test_avif_and_heic_are_read() -> None:
    for data in (encoded("AVIF", quality=90), heic(quality=90)):
        photo = images.decode_photo(data)
        assert np.abs(photo.image_HWC.astype(int) - SCENE_HWC).mean() < 2
        assert (photo.width, photo.height, photo.warning, photo.opacity_HW) == (300, 200, None, None)
        assert images.image_size(data) == (300, 200)


def test_avif_is_told_from_heic_by_its_brands() -> None:
    data = encoded("AVIF", quality=90)
    assert data[4:12] == b"ftypavif"
    as_container = data[:8] + b"mif1" + data[12:]  # the brand of the container, as some phones write it
    np.testing.assert_array_equal(images.decode_image(as_container), images.decode_image(data))


def test_heic_without_its_package_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for read in (images.decode_photo, images.decode_image, images.decode_alpha, images.image_size):
        with pytest.raises(BadImage, match=r'a HEIC photo \(heic\), which needs .* pip install "matting\[heif\]" on'):
            read(heic())


@pytest.mark.parametrize("cut", [40, 100, 2000])
def test_damaged_heic_is_refused(cut: int) -> None:
    data = heic(quality=90)
    with pytest.raises(BadImage, match="HEIF"):
        images.decode_photo(data[: len(data) - cut])
    with pytest.raises(BadImage, match="HEIF"):
        images.decode_photo(data[:cut])


def test_other_boxes_and_pointers_are_named() -> None:
    with pytest.raises(BadImage, match=r"not read here \(isom\)"):
        images.decode_photo(b"\0\0\0\x18ftypisom\0\0\2\0mp41iso2")
    with pytest.raises(BadImage, match="a pointer of Git LFS; fetch the file itself"):
        images.decode_photo(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"P6\n4 3\n255\n", "Netpbm"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (b"II*\0\x10\0\0\0CR\2\0", "Canon's raw format"),
    ],
)
def test_formats_that_are_not_read_are_named(start: bytes, name: str) -> None:
    with pytest.raises(BadImage, match=rf"a format that is not read here \({name}\); convert it to JPEG"):
        images.decode_photo(start + bytes(100))


def test_suffixes_of_photos(tmp_path: Path) -> None:
    names = ["a.jfif", "b.JPE", "c.avif", "d.HEIC", "e.heif", "f.hif", "g.jpg"]
    for name in [*names, "h.txt", "heic"]:
        (tmp_path / name).touch()
    photos = find_photos(str(tmp_path))
    assert photos.table["key"].to_pylist() == names
    assert photos.ignored == ("h.txt", "heic")


def test_content_decides_whatever_the_suffix_says() -> None:
    lossless = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}}
    for format, options in lossless.items():
        np.testing.assert_array_equal(images.decode_image(encoded(format, **options)), SCENE_HWC)

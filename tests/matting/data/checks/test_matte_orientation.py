"""EXIF orientation in only one of photo and matte: the edges decide, or the pair is refused and EXIF is named."""

from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image

from matting.data import images
from matting.data.checks.orientation import has_same_aspect
from matting.data.images import BadImage, Pixels
from matting.data.rows import decode_pair
from matting.data.synthetic import draw_person

ORIENTATIONS = range(2, 9)
STORED = {  # orientation -> transposition of the upright image that gives its stored pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
IMAGE, ALPHA = draw_person(0, 3, 150, 200)
SQUARE_IMAGE, SQUARE_ALPHA = draw_person(0, 3, 160, 160)


def encoded(array: Pixels, pixels: int = 1, tag: int = 1, kind: str = "PNG") -> bytes:
    """Encode an image whose pixels lie as orientation `pixels` says, with orientation `tag` in its EXIF data."""
    image = Image.fromarray(array)
    exif = Image.Exif()
    if tag > 1:
        exif[ExifTags.Base.Orientation] = tag
    sink = BytesIO()
    (image.transpose(STORED[pixels]) if pixels > 1 else image).save(sink, kind, exif=exif, quality=95)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("image", "alpha"), [(IMAGE, ALPHA), (SQUARE_IMAGE, SQUARE_ALPHA)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_matte_is_turned_as_its_photo_is(orientation: int, image: Pixels, alpha: Pixels, kind: str) -> None:
    photo = encoded(image, orientation, orientation, "JPEG")
    mattes = {
        "upright": encoded(alpha, kind=kind),
        "stored like the photo": encoded(alpha, orientation, kind=kind),
        "tagged like the photo": encoded(alpha, orientation, orientation, kind=kind),
        "upright, with the photo's tag": encoded(alpha, tag=orientation, kind=kind),
    }
    for matte in mattes.values():
        pair = decode_pair(photo, matte)
        np.testing.assert_array_equal(pair.alpha, alpha)
        np.testing.assert_array_equal(pair.image, images.decode_image(photo))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_tag_in_the_matte_alone(orientation: int) -> None:
    photo = encoded(IMAGE, kind="JPEG")
    for matte in (encoded(ALPHA, tag=orientation), encoded(ALPHA, orientation, orientation)):
        np.testing.assert_array_equal(decode_pair(photo, matte).alpha, ALPHA)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pair_without_telling_edges_is_refused_and_exif_named(orientation: int) -> None:
    grey = np.full_like(SQUARE_IMAGE, 128)
    with pytest.raises(
        BadImage, match=rf"EXIF orientation {orientation} in the image and 1 in the matte, and the edges"
    ):
        decode_pair(encoded(grey, orientation, orientation), encoded(SQUARE_ALPHA))
    pair = decode_pair(encoded(grey, orientation, orientation), encoded(SQUARE_ALPHA, orientation, orientation))
    np.testing.assert_array_equal(pair.alpha, SQUARE_ALPHA)  # nothing contradicts these tags


@pytest.mark.parametrize("orientation", [3, 6])
def test_matte_that_looks_the_same_when_turned_needs_no_edges(orientation: int) -> None:
    grey, disc = np.full((80, 80, 3), 128, np.uint8), np.zeros((80, 80), np.uint8)
    disc[20:60, 20:60] = 255
    np.testing.assert_array_equal(decode_pair(encoded(grey, orientation, orientation), encoded(disc)).alpha, disc)


def test_wrong_shape_is_refused_and_exif_named() -> None:
    with pytest.raises(
        BadImage, match=r"image is 150×200, matte 80×40 as stored; with EXIF orientation 6 in the image"
    ):
        decode_pair(encoded(IMAGE, 6, 6), encoded(images.resize(ALPHA, 80, 40)))


def test_scaled_matte_is_turned_too() -> None:
    half = images.resize(ALPHA, 75, 100)
    pair = decode_pair(encoded(IMAGE, 6, 6, "JPEG"), encoded(half, 6))
    np.testing.assert_array_equal(pair.alpha, half)
    assert has_same_aspect(pair.image, pair.alpha)

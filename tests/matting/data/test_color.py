"""images: colours come in sRGB by their profile, cutouts keep it, and a photo's own transparency is known."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from matting.data import images
from matting.data.images import BadImage, Pixels
from tests.matting.data.test_images import encoded, png
from tests.support.profiles import (
    ADOBE,
    P3,
    SRGB,
    cmyk_profile,
    grey_profile,
    matrix_of,
    rgb_profile,
    srgb_curve,
    srgb_curve_inverse,
)

LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
# Blocks of colours, not too far from grey, so that every profile's conversion stays within sRGB.
BLOCKS_HWC = np.kron(np.random.default_rng(0).integers(70, 170, (6, 8, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
GREY_HW = np.kron(np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4), np.ones((16, 16), np.uint8))


def converted(image_HWC: Pixels, primaries: tuple[tuple[float, float], ...], gamma: float | None) -> np.ndarray:
    """Convert RGB of these primaries to sRGB, by the definitions of both."""
    values = image_HWC / 255.0
    linear = (
        (values**gamma if gamma else srgb_curve(values)) @ matrix_of(primaries).T @ np.linalg.inv(matrix_of(SRGB)).T
    )
    return 255 * srgb_curve_inverse(linear.clip(0, 1))


@pytest.mark.parametrize(("primaries", "gamma"), [(P3, None), (ADOBE, 563 / 256)])
@pytest.mark.parametrize("format", LOSSLESS)
def test_photo_with_a_profile_comes_in_srgb(
    format: str, primaries: tuple[tuple[float, float], ...], gamma: float | None
) -> None:
    profile = rgb_profile(primaries, gamma)
    data = encoded(BLOCKS_HWC, format, icc_profile=profile, **LOSSLESS[format])
    expected_HWC = converted(BLOCKS_HWC, primaries, gamma)
    assert np.abs(expected_HWC - BLOCKS_HWC).max() > 20
    photo = images.decode_photo(data)
    assert np.abs(photo.image_HWC - expected_HWC).max() <= 1.5
    np.testing.assert_array_equal(images.decode_image(data), photo.image_HWC)
    np.testing.assert_array_equal(images.from_pillow(Image.open(BytesIO(data))).image_HWC, photo.image_HWC)
    stored_HWC, kept = images.decode_stored(data)
    np.testing.assert_array_equal(stored_HWC, BLOCKS_HWC)
    assert kept == photo.profile == profile
    assert photo.warning is None


@pytest.mark.parametrize("format", ["JPEG", "AVIF"])
def test_lossy_photo_with_a_profile_comes_in_srgb(format: str) -> None:
    options = {"quality": 98, "subsampling": "4:4:4", "icc_profile": rgb_profile()}
    photo = images.decode_photo(encoded(BLOCKS_HWC, format, **options), 48)
    centres_HWC = photo.image_HWC[4::8, 4::8] if format == "JPEG" else photo.image_HWC[8::16, 8::16]
    expected_HWC = converted(BLOCKS_HWC[::16, ::16], P3, None)
    assert centres_HWC.shape == (6, 8, 3)
    assert np.abs(centres_HWC - expected_HWC).mean() <= 2
    assert np.abs(centres_HWC - BLOCKS_HWC[::16, ::16]).mean() > 5


def test_plain_and_srgb_photos_are_left_as_they_are() -> None:
    plain = encoded(BLOCKS_HWC, "JPEG", quality=90)
    tagged = encoded(BLOCKS_HWC, "JPEG", quality=90, icc_profile=rgb_profile(SRGB))
    for data in (plain, tagged):
        photo = images.decode_photo(data)
        np.testing.assert_array_equal(photo.image_HWC, np.array(Image.open(BytesIO(data))))
        assert (photo.width, photo.height, photo.orientation) == (128, 96, 1)
        assert photo.opacity_HW is photo.profile is photo.warning is None
        assert images.decode_stored(data)[1] is None


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_by_its_profile(format: str) -> None:
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)]
    lab = [(100, 0, 0), (55, -35, -50), (40, 70, 85), (0, 0, 0)]  # by the profile's table
    stored_HWC = np.kron(np.array([inks], np.uint8), np.ones((16, 16, 1), np.uint8))
    options = {"quality": 98} if format == "JPEG" else {}
    data = encoded(Image.fromarray(stored_HWC, "CMYK"), format, icc_profile=cmyk_profile(), **options)
    photo = images.decode_photo(data)
    assert np.abs(photo.image_HWC[8, 8::16] - np.array([srgb_of_lab(*color) for color in lab])).max() <= 6
    colors_HWC, profile = images.decode_stored(data)  # a cutout is RGB: its numbers are converted, and need no profile
    np.testing.assert_array_equal(colors_HWC, photo.image_HWC)
    assert profile is photo.profile is photo.warning is None


def srgb_of_lab(lightness: float, a: float, b: float) -> np.ndarray:
    """Convert CIELAB (white D50) to sRGB, clipped to what it holds."""
    y = (lightness + 16) / 116
    f = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.96422, 1, 0.82521)
    return 255 * srgb_curve_inverse((np.linalg.inv(matrix_of(SRGB)) @ xyz).clip(0, 1))


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_is_converted_by_its_profile(mode: str) -> None:
    deep = Image.fromarray(GREY_HW.astype(np.uint16) * 257)
    stored = deep if mode == "I;16" else Image.fromarray(GREY_HW).convert(mode)
    data = encoded(stored, "PNG", icc_profile=grey_profile(1.0))
    linear = GREY_HW / 255
    expected_HW = 255 * srgb_curve_inverse(linear)
    photo = images.decode_photo(data)
    assert np.abs(photo.image_HWC - expected_HW[..., None]).max() <= 1
    assert photo.profile is photo.warning is None


def test_grey_photo_with_a_profile_of_rgb_is_converted() -> None:
    data = encoded(Image.fromarray(GREY_HW), "JPEG", icc_profile=rgb_profile(ADOBE, 1.0), quality=98)
    expected_HWC = converted(np.repeat(GREY_HW[8::16, 8::16, None], 3, 2), ADOBE, 1.0)
    assert np.abs(images.decode_image(data)[8::16, 8::16] - expected_HWC).max() <= 6


@pytest.mark.parametrize("profile", [b"nonsense", rgb_profile()[:200], cmyk_profile(), grey_profile(1.8)])
def test_unusable_profile_is_flagged_and_ignored(profile: bytes) -> None:
    data = encoded(BLOCKS_HWC, "PNG", icc_profile=profile)
    photo = images.decode_photo(data)
    np.testing.assert_array_equal(photo.image_HWC, BLOCKS_HWC)
    assert photo.warning == "its colour profile cannot be used; its colours are taken as sRGB"
    assert photo.profile is None


def test_incomplete_profile_is_flagged_and_ignored() -> None:
    data = encoded(BLOCKS_HWC, "JPEG", icc_profile=rgb_profile())
    count = data.index(b"ICC_PROFILE\0") + 13
    photo = images.decode_photo(data[:count] + b"\2" + data[count + 1 :])  # the first of two parts
    np.testing.assert_array_equal(photo.image_HWC, images.decode_image(encoded(BLOCKS_HWC, "JPEG")))
    assert photo.warning == "its colour profile cannot be used; its colours are taken as sRGB"


def test_profile_of_a_matte_is_not_applied() -> None:
    data = encoded(Image.fromarray(GREY_HW), "PNG", icc_profile=grey_profile(1.0))
    np.testing.assert_array_equal(images.decode_alpha(data), GREY_HW)


def test_encoded_cutouts_hold_the_profile() -> None:
    cutout_HWC = np.dstack([BLOCKS_HWC, np.full(BLOCKS_HWC.shape[:2], 255, np.uint8)])
    for data in (images.encode_png(cutout_HWC, rgb_profile()), images.encode_webp(cutout_HWC, profile=rgb_profile())):
        with Image.open(BytesIO(data)) as image:
            assert image.info["icc_profile"] == rgb_profile()
    with Image.open(BytesIO(images.encode_png(cutout_HWC, rgb_profile()))) as image:
        np.testing.assert_array_equal(np.array(image), cutout_HWC)
    assert b"iCCP" not in images.encode_png(cutout_HWC)
    assert b"ICCP" not in images.encode_webp(cutout_HWC)


# transparency ---------------------------------------------------------------------------------------------------------

OPACITY_HW = np.array([[0, 255, 7], [128, 0, 255]], np.uint8)
RED_HWC = np.full((2, 3, 3), (255, 0, 0), np.uint8)


def palette(transparency: bytes | int) -> Image.Image:
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.info["transparency"] = transparency
    return image


TRANSPARENT: dict[str, tuple[Callable[[], bytes], list[list[int]]]] = {
    "RGBA": (lambda: encoded(np.dstack([RED_HWC, OPACITY_HW])), OPACITY_HW.tolist()),
    "RGBA WebP": (lambda: encoded(np.dstack([RED_HWC, OPACITY_HW]), "WEBP", lossless=True), OPACITY_HW.tolist()),
    "RGBA TIFF": (lambda: encoded(np.dstack([RED_HWC, OPACITY_HW]), "TIFF"), OPACITY_HW.tolist()),
    "LA": (lambda: encoded(np.dstack([OPACITY_HW, OPACITY_HW])), OPACITY_HW.tolist()),
    "palette with alphas": (lambda: encoded(palette(b"\xff\x80\x00")), [[255, 128, 0], [0, 128, 255]]),
    "palette with a clear colour": (lambda: encoded(palette(1)), [[255, 0, 255], [255, 0, 255]]),
    "GIF": (lambda: encoded(palette(2), "GIF", transparency=2), [[255, 255, 0], [0, 255, 255]]),
    "RGB with a clear colour": (
        lambda: png(2, 1, 8, 2, b"\0\1\2\3\1\2\4", extra=b"tRNS\0\1\0\2\0\3"),
        [[0, 255]],
    ),
    "1 bit": (lambda: png(2, 1, 1, 0, b"\0\x80", extra=b"tRNS\0\1"), [[0, 255]]),
    "2 bits": (lambda: png(2, 1, 2, 0, b"\0\x90", extra=b"tRNS\0\2"), [[0, 255]]),
    "4 bits": (lambda: png(2, 1, 4, 0, b"\0\x9a", extra=b"tRNS\0\x0a"), [[255, 0]]),
    "8 bits": (lambda: png(2, 1, 8, 0, b"\0\x09\x0a", extra=b"tRNS\0\x0a"), [[255, 0]]),
    "16 bits": (lambda: png(2, 1, 16, 0, b"\0\1\2\1\3", extra=b"tRNS\1\2"), [[0, 255]]),
    "16 bits with alpha": (lambda: png(1, 1, 16, 6, b"\0" + bytes(6) + b"\x80\0"), [[128]]),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_own_transparency_is_read(name: str) -> None:
    make, expected_HW = TRANSPARENT[name]
    photo = images.decode_photo(make())
    assert photo.opacity_HW is not None
    np.testing.assert_array_equal(photo.opacity_HW, expected_HW)
    whole_HW = np.full_like(photo.opacity_HW, 255)
    np.testing.assert_array_equal(photo.limit(whole_HW), expected_HW)


def test_opaque_photos_have_no_transparency() -> None:
    opaque_HWC = np.dstack([RED_HWC, np.full((2, 3), 255, np.uint8)])
    for data in (encoded(opaque_HWC), encoded(RED_HWC), encoded(palette(b"\xff\xff\xff"))):
        photo = images.decode_photo(data)
        assert photo.opacity_HW is None
        assert photo.limit(OPACITY_HW) is OPACITY_HW


def test_transparency_turns_with_the_photo() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = images.decode_photo(encoded(np.dstack([RED_HWC, OPACITY_HW]), exif=exif))
    assert photo.opacity_HW is not None
    np.testing.assert_array_equal(photo.opacity_HW, np.rot90(OPACITY_HW, -1))


def test_clear_colour_of_16_bits_is_refused() -> None:
    data = png(1, 1, 16, 2, b"\0" + bytes(6), extra=b"tRNS" + b"\1\2" * 3)
    with pytest.raises(BadImage, match="16 bits with a transparent colour; expected an alpha channel"):
        images.decode_photo(data)


def test_opacities_are_multiplied_and_rounded() -> None:
    alpha_HW, opacity_HW = (grid.astype(np.uint8) for grid in np.mgrid[:256, :256])
    expected_HW = np.rint(alpha_HW.astype(float) * opacity_HW / 255)
    np.testing.assert_array_equal(images.multiply(alpha_HW, opacity_HW), expected_HW)

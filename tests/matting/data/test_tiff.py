"""images: every variant of TIFF decodes to tifffile's pixels, or is refused by name."""

from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from matting.data import images
from matting.data.images import BadImage, Pixels

ROWS, COLUMNS = np.mgrid[:21, :19]
CHANNELS = {"minisblack": 1, "miniswhite": 1, "palette": 1, "rgb": 3, "ycbcr": 3, "cielab": 3, "separated": 4}
COLOR_MAP = np.stack([np.arange(256), np.arange(256) * 7 % 256, 255 - np.arange(256)]).astype(np.uint16) * 257
EXTRA: list[tuple[int, ...]] = [
    (),
    (0,),
    (1,),
    (2,),
    (0, 0),
    (2, 0),
]  # other samples: unspecified, premultiplied, alpha
COMPRESSIONS = [(None, None), ("lzw", None), ("lzw", 2), ("deflate", 2), ("packbits", None), ("zstd", None)]


def samples(channels: int, bits: int) -> np.ndarray:
    """Return smooth values over the whole range of the type: (21, 19) or (21, 19, channels)."""
    planes = [(ROWS * (3 + index) + COLUMNS * (5 - index) + 7 * index) % 97 / 96 for index in range(channels)]
    values = np.stack(planes, axis=-1) * (2**bits - 1)
    return np.squeeze(values.astype(f"u{bits // 8}"))


def written(values: np.ndarray, planar: int = 1, **options: Any) -> bytes:
    file = BytesIO()
    in_planes = planar == 2 and values.ndim == 3
    if values.ndim == 3:
        options["planarconfig"] = planar
    tifffile.imwrite(file, np.moveaxis(values, -1, 0) if in_planes else values, metadata=None, **options)
    return file.getvalue()


def expected(values: np.ndarray, photometric: str, extra: tuple[int, ...]) -> np.ndarray:
    """Return RGB in [0, 255] by the definition of the color space."""
    if photometric == "palette":
        return COLOR_MAP.T[values] / 257
    colors = np.atleast_3d(values / np.iinfo(values.dtype).max)
    alpha = colors[..., CHANNELS[photometric]] if extra else None
    colors = colors[..., : CHANNELS[photometric]]
    if extra[:1] == (1,):
        with np.errstate(divide="ignore", invalid="ignore"):
            colors = np.where(alpha[..., None] > 0, (colors / alpha[..., None]).clip(0, 1), colors)
    if photometric == "miniswhite":
        colors = 1 - colors
    if photometric == "separated":
        colors = (1 - colors[..., :3]) * (1 - colors[..., 3:])
    if photometric == "ycbcr":
        y, blue, red = (255 * colors - (0, 128, 128)).transpose(2, 0, 1)
        return np.stack([y + 1.402 * red, y - 0.344 * blue - 0.714 * red, y + 1.772 * blue], -1).clip(0, 255)
    return np.broadcast_to(255 * colors, (*colors.shape[:2], 3))


def decode(data: bytes) -> Pixels | None:
    """Return the decoded photo; None if it is refused by name."""
    try:
        return images.decode_image(data)
    except BadImage as error:
        if not str(error).startswith("a TIFF of a kind that is not read here: "):
            raise
        return None


@pytest.mark.parametrize("photometric", CHANNELS)
def test_every_layout_is_right_or_refused(photometric: str) -> None:
    accepted = set()
    for bits, extra, planar, (compression, predictor), order, tile in product(
        (8, 16, 32), EXTRA, (1, 2), COMPRESSIONS, "<>", (None, (16, 16))
    ):
        channels = CHANNELS[photometric] + len(extra)
        if (channels == 1 and planar == 2) or (photometric == "palette" and (extra or bits != 8)):
            continue
        values = samples(channels, bits)
        options: dict[str, Any] = {"photometric": photometric, "compression": compression, "predictor": predictor}
        options |= {"byteorder": order, "tile": tile, "extrasamples": extra or None}
        options |= {"colormap": COLOR_MAP} if photometric == "palette" else {}
        data = written(values, planar, **options)
        image_HWC = decode(data)
        if image_HWC is not None:
            wanted_HWC = expected(values, photometric, extra)
            errors_HWC = np.abs(image_HWC - wanted_HWC)
            if extra[:1] == (1,):  # rounding counts as far as it shows
                errors_HWC *= values[..., CHANNELS[photometric], None] / np.iinfo(values.dtype).max
            assert errors_HWC.max() <= (4 if photometric == "ycbcr" else 2), (bits, extra, planar, options)
            accepted.add((bits, extra, planar))
    assert accepted >= ALWAYS_READ[photometric]
    assert not any(bits == 32 for bits, _, _ in accepted)


ALWAYS_READ: dict[str, set[tuple[int, tuple[int, ...], int]]] = {
    "minisblack": {(8, (), 1), (16, (), 1), (8, (2,), 1)},
    "miniswhite": {(8, (), 1), (16, (), 1)},
    "palette": {(8, (), 1)},
    "rgb": {(8, (), 1), (16, (), 1), (8, (2,), 1), (16, (2,), 1), (8, (1,), 1), (8, (0,), 1), (8, (), 2)},
    "ycbcr": {(8, (), 1)},
    "cielab": set(),
    "separated": {(8, (), 1), (16, (), 1)},
}


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_few_bits_are_right_or_refused(photometric: str, bits: int) -> None:
    values = ((3 * COLUMNS + 5 * ROWS) % 2**bits).astype(np.uint8 if bits < 9 else np.uint16)
    for order in "<>":
        options = {"photometric": photometric, "byteorder": order}
        data = written(values.astype(bool), **options) if bits == 1 else written(values, bitspersample=bits, **options)
        image_HWC = decode(data)
        assert (image_HWC is None) == (bits == 12)
        if image_HWC is not None:
            grey = values / (2**bits - 1)
            grey = 1 - grey if photometric == "miniswhite" else grey
            assert np.abs(image_HWC - 255 * grey[..., None]).max() <= 1


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "f2", "f4", "f8"])
def test_signed_and_floating_point_samples_are_refused_by_name(kind: str) -> None:
    numbers = "floating-point" if kind[0] == "f" else "signed"
    for values in (np.zeros((3, 4), kind), np.zeros((3, 4, 3), kind)):
        with pytest.raises(BadImage, match=f"of {8 * int(kind[1])} bits, {numbers}, compression 1; convert it to RGB"):
            images.decode_image(written(values, photometric="rgb" if values.ndim == 3 else "minisblack"))


def test_more_channels_than_color_has_are_refused_by_name() -> None:
    with pytest.raises(
        BadImage, match="RGB, 9 channels of 8 bits, unsigned, compression 1; convert it to RGB of 8 bits"
    ):
        images.decode_image(written(samples(9, 8), photometric="rgb", extrasamples=[0] * 6))


def test_preview_of_a_raw_photo_is_refused() -> None:
    with pytest.raises(BadImage, match="first image is only a preview, as in raw photos"):
        images.decode_image(written(samples(3, 8), photometric="rgb", subfiletype=1))
    assert images.decode_image(written(samples(3, 8), photometric="rgb", subfiletype=2)).shape == (21, 19, 3)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_jpeg_in_tiff_is_close(subsampling: tuple[int, int]) -> None:
    values = np.kron(samples(3, 8) // 4 + 90, np.ones((16, 16, 1), np.uint8))
    args = {"level": 95}
    data = written(values, photometric="rgb", compression="jpeg", compressionargs=args, subsampling=subsampling)
    image_HWC = images.decode_image(data)
    assert np.abs(image_HWC[8::16, 8::16].astype(int) - values[8::16, 8::16]).max() <= 8


def test_white_is_zero_holds_for_mattes_and_pillow_images() -> None:
    values = samples(1, 16)
    data = written(values, photometric="miniswhite", compression="lzw")
    expected_HW = np.rint((65535.0 - values) / 257)
    np.testing.assert_array_equal(images.decode_alpha(data), expected_HW)
    for image in (Image.open(BytesIO(data)), loaded(data)):
        np.testing.assert_array_equal(images.from_pillow(image).image_HWC[..., 0], expected_HW)


def loaded(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def test_pillow_image_of_a_garbled_kind_is_refused() -> None:
    data = written(samples(2, 8), 2, photometric="minisblack", compression="lzw", extrasamples=[2])
    image = Image.open(BytesIO(data))
    image.load()  # Pillow gives wrong pixels without an error
    with pytest.raises(BadImage, match="grey, 2 channels in planes of 8 bits"):
        images.from_pillow(image)


def test_palette_of_8_bits_is_read() -> None:
    data = written(samples(1, 8), photometric="palette", colormap=COLOR_MAP // 257)
    expected_HWC = COLOR_MAP.T[samples(1, 8)] // 257
    np.testing.assert_array_equal(images.decode_image(data), expected_HWC)
    np.testing.assert_array_equal(images.from_pillow(Image.open(BytesIO(data))).image_HWC, expected_HWC)


def test_kinds_that_pillow_takes_for_damage_are_refused_by_name() -> None:
    with pytest.raises(BadImage, match="a TIFF of a kind that is not read here: a big-endian BigTIFF"):
        images.decode_image(written(samples(3, 8), photometric="rgb", byteorder=">", bigtiff=True))
    with pytest.raises(BadImage, match="unsigned, compression 50001; convert it to RGB of 8 bits"):
        images.decode_image(written(samples(3, 8), photometric="rgb", compression="webp"))


def test_matte_of_premultiplied_grey_is_its_alpha() -> None:
    alpha_HW = samples(1, 8)
    data = written(np.dstack([alpha_HW, alpha_HW]), photometric="minisblack", extrasamples=[1])
    np.testing.assert_array_equal(images.decode_alpha(data), alpha_HW)

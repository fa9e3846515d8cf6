"""images: every kind of image file decodes to the right pixels, or raises BadImage with a clear reason."""

import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from matting.data import images
from matting.data.images import BadImage

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)

# 2 wide, 3 high; every rotation and flip changes every pixel.
COLOURS_HWC = np.array([[RED, GREEN], [BLUE, GREY], [(255, 255, 0), (0, 0, 0)]], np.uint8)
RAMP_HW = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Write a PNG by hand, for features that Pillow does not write. Each row begins with a filter byte."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = (extra and chunk(extra[:4], extra[4:])) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


# photos ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_lossless_formats_keep_every_pixel(format, options):
    image_HWC = images.decode_image(encoded(COLOURS_HWC, format, **options))
    np.testing.assert_array_equal(image_HWC, COLOURS_HWC)
    assert image_HWC.dtype == np.uint8
    assert image_HWC.flags.writeable  # torch warns about read-only arrays


def test_jpeg_is_close_to_the_original():
    smooth_HWC = np.stack(np.broadcast_arrays(*np.ogrid[0:160:2, 0:200:2], 90), axis=2).astype(np.uint8)
    image_HWC = images.decode_image(images.encode_jpeg(smooth_HWC))
    assert np.abs(image_HWC.astype(int) - smooth_HWC).max() <= 4


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if format == "WEBP" else {}
    image_HWC = images.decode_image(encoded(frames[0], format, save_all=True, append_images=frames[1:], **options))
    np.testing.assert_array_equal(image_HWC, np.full((3, 4, 3), RED))


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_grey_images_get_three_equal_channels(mode):
    grey_HW = np.array([[0, 255, 255], [255, 0, 0]], np.uint8)
    data = encoded(Image.fromarray(grey_HW).convert(mode))
    np.testing.assert_array_equal(images.decode_image(data), np.repeat(grey_HW[..., None], 3, axis=2))


def test_16_bit_pixels_are_scaled():
    deep_HW = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], np.uint16)
    expected_HW = np.array([[0, 0, 1, 1], [128, 254, 255, 255]])
    for data in (encoded(deep_HW), encoded(deep_HW, "TIFF"), encoded(Image.fromarray(deep_HW.astype(">u2")), "TIFF")):
        np.testing.assert_array_equal(images.decode_alpha(data), expected_HW)
        np.testing.assert_array_equal(images.decode_image(data), np.repeat(expected_HW[..., None], 3, axis=2))

    colour = png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 65535, 32768, 0, 0, 257, 65535))
    np.testing.assert_array_equal(images.decode_image(colour), [[[255, 128, 0], [0, 1, 255]]])


def test_transparent_colours_are_kept():
    cutout_HWC = np.dstack([COLOURS_HWC, np.array([[0, 255], [7, 0], [0, 128]], np.uint8)])
    np.testing.assert_array_equal(images.decode_image(encoded(cutout_HWC)), COLOURS_HWC)

    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)
    for transparency in (b"\x00\x80", 0, b"\x40"):
        data = encoded(palette, transparency=transparency)
        np.testing.assert_array_equal(images.decode_image(data), [[RED, GREEN]])


def test_from_pillow_leaves_its_argument_unchanged():
    with Image.open(BytesIO(encoded(Image.new("P", (2, 1)), transparency=0))) as image:
        assert images.from_pillow(image).image_HWC.shape == (1, 2, 3)
        assert image.info["transparency"] == 0


def test_cmyk_jpeg_is_not_inverted():
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")  # no cyan, full magenta and yellow: red
    np.testing.assert_allclose(images.decode_image(data)[8, 8].astype(int), RED, atol=6)


def test_floating_point_pixels_are_refused():
    data = encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF")
    with pytest.raises(BadImage, match="1 channel of 32 bits, floating-point"):
        images.decode_image(data)


# mattes ---------------------------------------------------------------------------------------------------------------


def test_alpha_of_a_grey_matte():
    for data in (
        encoded(RAMP_HW),
        encoded(RAMP_HW, "TIFF"),
        encoded(np.dstack([RAMP_HW] * 3)),
        encoded(np.dstack([RAMP_HW] * 3), "BMP"),
    ):
        np.testing.assert_array_equal(images.decode_alpha(data), RAMP_HW)


def test_alpha_of_a_transparent_image():
    photo_HWC = np.broadcast_to(np.array(RED, np.uint8), (2, 3, 3))
    np.testing.assert_array_equal(images.decode_alpha(encoded(np.dstack([photo_HWC, RAMP_HW]))), RAMP_HW)
    grey = Image.merge("LA", [Image.new("L", (3, 2), 9), Image.fromarray(RAMP_HW)])
    np.testing.assert_array_equal(images.decode_alpha(encoded(grey)), RAMP_HW)


def test_alpha_of_an_opaque_grey_rgba_image():
    opaque = Image.fromarray(RAMP_HW).convert("RGBA")
    np.testing.assert_array_equal(images.decode_alpha(encoded(opaque)), RAMP_HW)


def test_alpha_of_a_1_bit_matte():
    data = encoded(Image.fromarray(np.array([[True, False], [False, True]])))
    np.testing.assert_array_equal(images.decode_alpha(data), [[255, 0], [0, 255]])


def test_alpha_of_a_palette_matte():
    matte = Image.new("P", (2, 1))
    matte.putpalette([10, 10, 10, 200, 200, 200])
    matte.putpixel((1, 0), 1)
    np.testing.assert_array_equal(images.decode_alpha(encoded(matte)), [[10, 200]])
    np.testing.assert_array_equal(images.decode_alpha(encoded(matte, transparency=b"\x00\x80")), [[0, 128]])


def test_alpha_of_an_rgb_jpeg_matte():
    ramp_HW = np.tile(np.arange(0, 256, 4, np.uint8), (64, 1))
    alpha_HW = images.decode_alpha(images.encode_jpeg(np.dstack([ramp_HW] * 3)))
    assert np.abs(alpha_HW.astype(int) - ramp_HW).max() <= 3


def test_alpha_of_an_opaque_cutout():
    cutout = Image.fromarray(COLOURS_HWC).convert("RGBA")
    assert (images.decode_alpha(encoded(cutout)) == 255).all()


def test_colour_image_is_refused_as_a_matte():
    with pytest.raises(BadImage, match="an image in colour, not a matte"):
        images.decode_alpha(encoded(COLOURS_HWC))


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.sampled_from([(), (3,), (4,)]), st.data())
def test_png_keeps_every_pixel(size, channels, data):
    array = data.draw(arrays.arrays(np.uint8, size + channels))
    with Image.open(BytesIO(images.encode_png(array))) as image:
        image.load()
        assert image.mode == {(): "L", (3,): "RGB", (4,): "RGBA"}[channels]
        np.testing.assert_array_equal(np.array(image), array)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("side", "factor"), [(96, 1), (49, 1), (48, 2), (24, 4), (1, 8)])
def test_large_jpeg_is_decoded_reduced(orientation, side, factor):
    scene = Image.fromarray(COLOURS_HWC).resize((160, 96), Image.Resampling.BILINEAR)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(scene, "JPEG", exif=exif, quality=95)
    photo = images.decode_photo(data, side)
    image_HWC, width, height = photo.image_HWC, photo.width, photo.height
    whole_HWC = images.decode_image(data)
    assert whole_HWC.shape == (height, width, 3)
    assert image_HWC.shape == (height // factor, width // factor, 3)
    means_HWC = np.array(Image.fromarray(whole_HWC).reduce(factor), int)
    assert np.abs(image_HWC - means_HWC).mean() < 3


# what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>", r"not an image \(HTML or XML\?\)"),
        (b"\n <?xml version='1.0'?><svg/>", r"not an image \(HTML or XML\?\)"),
        (b'{"error": "denied"}', r"not an image \(JSON\?\)"),
        (b"%PDF-1.7 ...", r"not an image \(PDF\)"),
        (b"\0\0\0\x18ftypisom....mp41", r"not read here \(isom\); convert it"),
        (b"\0" * 100, r"not an image \(b'"),
        (b"\xff\xd8\xff", "truncated JPEG: it ends before its pixels"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WEBP"),
        (b"BM", "BMP"),
    ],
)
def test_other_files_are_refused_with_a_reason(data, reason):
    for read in (images.decode_image, images.decode_alpha, images.image_size):
        with pytest.raises(BadImage, match=reason) as caught:
            read(data)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_file_is_refused(format):
    noise_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(noise_HWC, format)
    with pytest.raises(BadImage, match=format):
        images.decode_image(data[: len(data) // 2])


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]), st.data())
def test_damaged_file_decodes_or_raises_bad_image(format, draw):
    data = bytearray(encoded(np.kron(COLOURS_HWC, np.ones((8, 8, 1), np.uint8)), format))
    for _ in range(draw.draw(st.integers(1, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    for read in (images.decode_image, images.decode_alpha, images.image_size):
        try:
            read(bytes(data), max_pixels=100_000)
        except BadImage as error:
            assert str(error)  # noqa: PT017


def test_too_many_pixels_are_refused_by_the_header():
    bomb = png(30_000, 30_000, 8, 2, b"")  # decoding it would report the missing pixels
    for read in (images.decode_image, images.decode_alpha, images.image_size):
        with pytest.raises(BadImage, match="30000×30000 pixels, more than the limit of 120,000,000"):
            read(bomb)


def test_caller_sets_the_pixel_limit():
    data = encoded(COLOURS_HWC)
    assert images.decode_image(data, max_pixels=6).shape == (3, 2, 3)
    with pytest.raises(BadImage, match="2×3 pixels, more than the limit of 5"):
        images.decode_image(data, max_pixels=5)


def test_pillows_pixel_limit_does_not_warn():
    large = png(10_000, 9_000, 1, 0, (b"\0" + b"\xff" * 1250) * 9_000)  # 90 million: Image.open warns
    assert images.image_size(large, max_pixels=10**8) == (10_000, 9_000)


@pytest.mark.filterwarnings("error")
def test_pillows_warnings_are_silenced():
    animated = png(2, 1, 8, 0, b"\0\x00\xff", extra=b"acTL" + struct.pack(">II", 0, 0))  # no frames: "Invalid APNG"
    odd_tag = encoded(RAMP_HW, "TIFF", tiffinfo={0x0110: "camera"})
    count = odd_tag.index(struct.pack("<HH", 0x0110, 2)) + 4
    odd_tag = odd_tag[:count] + struct.pack("<I", 10_000) + odd_tag[count + 4 :]  # a tag longer than the file
    broken_exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x0f\0\x02\0\0\xff\xff\0\0\xff\xff"
    jpeg = encoded(np.dstack([RAMP_HW] * 3), "JPEG", exif=broken_exif)
    for data in (animated, odd_tag, jpeg):
        assert warns(data), "Pillow no longer warns about this file; find one that it does warn about"
        assert images.decode_alpha(data).shape[1] in (2, 3)


def warns(data: bytes) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(BytesIO(data)) as image:
            image.load()
            image.getexif()
    return bool(caught)


def test_threads_decode_at_the_same_time():
    files = [
        encoded(np.full((40, 40, 3), value, np.uint8), format)
        for value in range(0, 250, 5)
        for format in ("PNG", "TIFF")
    ]
    with ThreadPoolExecutor(8) as pool:
        decoded = list(pool.map(images.decode_image, files))
    assert [int(image_HWC[0, 0, 0]) for image_HWC in decoded] == [value for value in range(0, 250, 5) for _ in "ab"]


# sizes and encoding ---------------------------------------------------------------------------------------------------


def test_resize_halves_by_a_triangle_filter():
    # At half the size, the filter is a triangle of half-width 2 source pixels. At the edge, pixels whose centres are
    # 0.5, 0.5 and 1.5 away have the weights 3/7, 3/7 and 1/7.
    row_HW = np.array([[0, 70, 210, 210]], np.uint8)
    np.testing.assert_array_equal(images.resize(row_HW, 2, 1), [[60, 190]])


def test_resize_keeps_channels_and_constants():
    image_HWC = np.full((30, 20, 3), (1, 2, 3), np.uint8)
    small_HWC = images.resize(image_HWC, 7, 11)
    assert small_HWC.shape == (11, 7, 3)
    assert (small_HWC == (1, 2, 3)).all()
    assert images.resize(RAMP_HW, 6, 4).shape == (4, 6)
    assert images.resize(image_HWC, 20, 30) is image_HWC


def test_png_cutout_keeps_transparent_colours():
    cutout_HWC = np.dstack([COLOURS_HWC, np.zeros((3, 2), np.uint8)])
    with Image.open(BytesIO(images.encode_png(cutout_HWC))) as image:
        np.testing.assert_array_equal(np.asarray(image), cutout_HWC)


def test_jpeg_holds_no_longer_side():
    image_HWC = np.zeros((1, images.MAX_JPEG_SIDE, 3), np.uint8)
    assert images.image_size(images.encode_jpeg(image_HWC)) == (images.MAX_JPEG_SIDE, 1)
    with pytest.raises(BadImage, match="1×65501 pixels, more than the 65,500 a side that JPEG holds; choose PNG"):
        images.encode_jpeg(np.zeros((images.MAX_JPEG_SIDE + 1, 1, 3), np.uint8))


def test_jpeg_keeps_colours_at_full_resolution():
    stripes_HWC = np.tile(np.array([RED, BLUE], np.uint8), (16, 8, 1))  # 4:2:0 would blend them into one violet
    assert np.abs(images.decode_image(images.encode_jpeg(stripes_HWC)).astype(int) - stripes_HWC).max() < 60

"""images: colours that a file defines without a profile are converted as its numbers say; see `named_colors`."""

import struct
from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from matting.data import images
from matting.data.decoding.png import png_chunk
from matting.data.images import Pixels
from tests.matting.data.test_color import BLOCKS_HWC, GREY_HW, converted
from tests.matting.data.test_images import encoded
from tests.support.profiles import ADOBE, D65, P3, SRGB, rgb_profile, srgb_curve_inverse

Primaries = tuple[tuple[float, float], ...]

BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
PLAIN = encoded(BLOCKS_HWC)


def with_chunks(data: bytes, **chunks: bytes) -> bytes:
    """Return a PNG with these chunks after its header."""
    return data[:33] + b"".join(png_chunk(name.encode(), body) for name, body in chunks.items()) + data[33:]


def cicp(primaries: int, transfer: int, matrix: int = 0, is_full: int = 1) -> bytes:
    return bytes([primaries, transfer, matrix, is_full])


def gama(gamma: float) -> bytes:
    return struct.pack(">I", round(100_000 / gamma))


def chrm(primaries: Primaries) -> bytes:
    return struct.pack(">8I", *(round(100_000 * value) for point in (D65, *primaries) for value in point))


def exif(space: int, index: bytes, order: str = "<") -> bytes:
    """Return EXIF data of a camera: a colour space and an index of interoperability, in directories of their own."""
    entries = [(ExifTags.IFD.Exif, 4, 26), (ExifTags.IFD.Interop, 4, 56), (ExifTags.Interop.InteropIndex, 2, 0)]
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    pack = lambda tag, kind, value: struct.pack(f"{order}HHI", tag, kind, 1) + value  # noqa: E731
    word = lambda value: struct.pack(f"{order}I", value)  # noqa: E731
    short = struct.pack(f"{order}HH", space, 0)
    count = [struct.pack(f"{order}H", number) for number in (0, 1, 2)]
    first = count[1] + pack(*entries[0][:2], word(26)) + word(0)
    second = count[2] + pack(ExifTags.Base.ColorSpace, 3, short) + pack(*entries[1][:2], word(56)) + word(0)
    return b"Exif\0\0" + start + first + second + count[1] + pack(*entries[2][:2], index) + word(0)


DEFINED: dict[str, tuple[dict[str, bytes], Primaries, float | None]] = {
    "P3 by CICP": ({"cICP": cicp(12, 13)}, P3, None),
    "BT.2020 with the curve of BT.709": ({"cICP": cicp(9, 1)}, BT2020, None),
    "linear by CICP": ({"cICP": cicp(1, 8)}, SRGB, 1.0),
    "Adobe RGB by chunks": ({"gAMA": gama(2.19921875), "cHRM": chrm(ADOBE)}, ADOBE, 2.19921875),
    "P3's primaries alone": ({"cHRM": chrm(P3)}, P3, None),
    "gamma of old screens": ({"gAMA": gama(1.8)}, SRGB, 1.8),
    "CICP before chunks": ({"gAMA": gama(1.8), "cICP": cicp(12, 13)}, P3, None),
}


@pytest.mark.parametrize("name", DEFINED)
def test_numbers_of_a_png_are_applied(name: str) -> None:
    chunks, primaries, gamma = DEFINED[name]
    data = with_chunks(PLAIN, **chunks)
    photo = images.decode_photo(data)
    assert photo.warning is None
    assert np.abs(photo.image_HWC - converted(BLOCKS_HWC, primaries, gamma)).max() <= 1.5
    assert np.abs(photo.image_HWC.astype(int) - BLOCKS_HWC).max() > 5
    np.testing.assert_array_equal(images.decode_image(data), photo.image_HWC)
    if "cICP" not in chunks:
        np.testing.assert_array_equal(images.from_pillow(Image.open(BytesIO(data))).image_HWC, photo.image_HWC)


@pytest.mark.parametrize("name", DEFINED)
def test_cutouts_keep_the_numbers_with_a_profile_of_them(name: str) -> None:
    data = with_chunks(PLAIN, **DEFINED[name][0])
    stored_HWC, profile = images.decode_stored(data)
    np.testing.assert_array_equal(stored_HWC, BLOCKS_HWC)
    kept = images.encode_png(stored_HWC, profile)
    np.testing.assert_array_equal(images.decode_image(kept), images.decode_image(data))


@pytest.mark.parametrize(
    "chunks",
    [
        {"cICP": cicp(1, 13)},
        {"cICP": cicp(2, 2)},
        {"gAMA": gama(2.2)},
        {"gAMA": gama(2.2), "cHRM": chrm(SRGB)},
        {"sRGB": b"\0", "gAMA": gama(1.0), "cHRM": chrm(P3)},
        {"tEXt": b"Comment\0" + png_chunk(b"cIC", b"\4cICP\x0c\x0d\0\1")},
    ],
)
def test_numbers_of_srgb_change_nothing(chunks: dict[str, bytes]) -> None:
    photo = images.decode_photo(with_chunks(PLAIN, **chunks))
    np.testing.assert_array_equal(photo.image_HWC, BLOCKS_HWC)
    assert photo.profile is photo.warning is None


def test_cicp_counts_more_than_a_profile_and_a_profile_more_than_chunks() -> None:
    tagged = encoded(BLOCKS_HWC, icc_profile=rgb_profile(ADOBE, 563 / 256))
    both = images.decode_image(with_chunks(tagged, cICP=cicp(12, 13)))
    np.testing.assert_array_equal(both, images.decode_image(with_chunks(PLAIN, cICP=cicp(12, 13))))
    plain = images.decode_photo(with_chunks(tagged, cICP=cicp(1, 13)))
    np.testing.assert_array_equal(plain.image_HWC, BLOCKS_HWC)
    assert plain.profile is None
    for chunks in ({"gAMA": gama(1.0)}, {"cICP": cicp(9, 16)}):  # the last one is not applied: PQ
        photo = images.decode_photo(with_chunks(tagged, **chunks))
        np.testing.assert_array_equal(photo.image_HWC, images.decode_image(tagged))
        assert photo.warning is None


@pytest.mark.parametrize(
    ("chunks", "named"),
    [
        ({"cICP": cicp(9, 16)}, "CICP primaries 9, transfer 16"),  # PQ
        ({"cICP": cicp(12, 13, is_full=0)}, "CICP primaries 12, transfer 13"),
        ({"cICP": cicp(5, 13)}, "CICP primaries 5, transfer 13"),
        ({"gAMA": bytes(4)}, "gAMA and cHRM of no real colours"),
        ({"gAMA": b"\xff" * 4}, "gAMA and cHRM of no real colours"),
        ({"cHRM": bytes(32)}, "gAMA and cHRM of no real colours"),
        ({"cHRM": b"\xff" * 32}, "gAMA and cHRM of no real colours"),
        ({"cHRM": chrm((SRGB[0], SRGB[0], SRGB[2]))}, "gAMA and cHRM of no real colours"),
    ],
)
def test_numbers_that_cannot_be_applied_are_flagged(chunks: dict[str, bytes], named: str) -> None:
    photo = images.decode_photo(with_chunks(PLAIN, **chunks))
    np.testing.assert_array_equal(photo.image_HWC, BLOCKS_HWC)
    assert photo.warning == f"its colours ({named}) are not converted; they are taken as sRGB"


def test_gamma_of_grey_is_applied_to_photos_and_not_to_mattes() -> None:
    data = with_chunks(encoded(Image.fromarray(GREY_HW)), gAMA=gama(1.0))
    expected_HW = 255 * srgb_curve_inverse(GREY_HW / 255)
    assert np.abs(images.decode_image(data) - expected_HW[..., None]).max() <= 1
    assert images.decode_stored(data)[1] is None
    np.testing.assert_array_equal(images.decode_alpha(data), GREY_HW)


def test_numbers_of_an_avif_are_applied() -> None:
    avif = encoded(BLOCKS_HWC, "AVIF", quality=98, subsampling="4:4:4")
    place = avif.index(b"colrnclx") + 8
    plain = images.decode_photo(avif)
    assert plain.warning is plain.profile is None
    photo = images.decode_photo(avif[:place] + b"\0\x0c" + avif[place + 2 :])
    assert np.abs(photo.image_HWC - converted(plain.image_HWC, P3, None)).max() <= 1.5
    assert photo.warning is None
    flagged = images.decode_photo(avif[:place] + b"\0\x09\0\x10" + avif[place + 4 :])
    assert "CICP primaries 9, transfer 16" in str(flagged.warning)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("format", "options"), [("JPEG", {"quality": 98}), ("WEBP", {"lossless": True}), ("PNG", {})])
def test_adobe_rgb_of_cameras_is_applied(format: str, options: dict[str, object], order: str) -> None:
    plain = images.decode_image(encoded(BLOCKS_HWC, format, **options))
    data = encoded(BLOCKS_HWC, format, exif=exif(65535, b"R03\0", order), **options)
    photo = images.decode_photo(data)
    assert np.abs(photo.image_HWC - converted(plain, ADOBE, 563 / 256)).max() <= 1.5
    np.testing.assert_array_equal(images.from_pillow(Image.open(BytesIO(data))).image_HWC, photo.image_HWC)
    assert photo.warning is None
    assert photo.profile is not None


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_adobe_rgb_of_cameras_is_applied_in_tiff(mode: str, order: str) -> None:
    image = Image.fromarray(BLOCKS_HWC).convert(mode)
    plain_HWC = np.asarray(image.convert("RGB"))
    for index, (primaries, gamma) in {b"R03\0": (ADOBE, 563 / 256), b"R98\0": (SRGB, None)}.items():
        photo = images.decode_photo(tiff_with_exif(image, index, order))
        assert np.abs(photo.image_HWC - converted(plain_HWC, primaries, gamma)).max() <= 1.5
        assert photo.warning is None


def tiff_with_exif(image: Image.Image, index: bytes, order: str) -> bytes:
    """Return a TIFF with an EXIF directory, whose colour space has this index of interoperability."""
    buffer = BytesIO()
    tifffile.imwrite(
        buffer,
        np.asarray(image),
        photometric="minisblack" if image.mode == "L" else "rgb",
        byteorder=order,
        metadata=None,
        extrasamples=["unassalpha"] if image.mode == "RGBA" else None,
        extratags=[(65000, 4, 1, 0, True)],  # tifffile writes no other place of EXIF data
    )
    end = len(buffer.getvalue())
    pack = lambda tag, kind, value: struct.pack(f"{order}HHII", tag, kind, 1, value)  # noqa: E731
    data = buffer.getvalue().replace(pack(65000, 4, 0), pack(ExifTags.IFD.Exif, 4, end))
    count = [struct.pack(f"{order}H", number) for number in (2, 1)]
    space = pack(ExifTags.Base.ColorSpace, 3, 0)[:8] + struct.pack(f"{order}HH", 65535, 0)
    first = count[0] + space + pack(ExifTags.IFD.Interop, 4, end + 30) + bytes(4)
    return data + first + count[1] + pack(ExifTags.Interop.InteropIndex, 2, 0)[:8] + index + bytes(4)


def test_numbers_and_profile_of_a_heic_are_applied() -> None:
    buffer = BytesIO()
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(BLOCKS_HWC)).save(buffer, quality=95, chroma=444)
    heic = buffer.getvalue()
    place = heic.index(b"colrnclx") + 8
    plain = images.decode_photo(heic)
    assert plain.warning is plain.profile is None
    photo = images.decode_photo(heic[:place] + b"\0\x0c" + heic[place + 2 :])
    assert np.abs(photo.image_HWC - converted(plain.image_HWC, P3, None)).max() <= 1.5
    assert photo.profile is not None
    assert photo.warning is None
    buffer = BytesIO()
    heif = pillow_heif.from_pillow(Image.fromarray(BLOCKS_HWC))
    heif.save(buffer, quality=95, chroma=444, icc_profile=rgb_profile(P3))
    tagged_HWC = images.decode_image(buffer.getvalue())
    assert np.abs(tagged_HWC - converted(plain.image_HWC, P3, None)).max() <= 2
    flagged = images.decode_photo(heic[:place] + b"\0\x09\0\x10" + heic[place + 4 :])
    assert "CICP primaries 9, transfer 16" in str(flagged.warning)


def test_other_colors_by_exif_are_taken_as_srgb() -> None:
    def decoded(data: bytes, **options: object) -> Pixels:
        return images.decode_image(encoded(BLOCKS_HWC, "JPEG", exif=data, **options))

    plain = images.decode_image(encoded(BLOCKS_HWC, "JPEG"))
    for data in (exif(1, b"R98\0"), exif(65535, b"R98\0"), exif(1, b"R03\0"), exif(65535, b"R03\0")[:60] + b"R03\0"):
        np.testing.assert_array_equal(decoded(data), plain)
    tagged = decoded(exif(65535, b"R03\0"), icc_profile=rgb_profile(P3))
    np.testing.assert_array_equal(tagged, decoded(b"", icc_profile=rgb_profile(P3)))
    cmyk = Image.fromarray(BLOCKS_HWC).convert("CMYK")
    photo = images.decode_photo(encoded(cmyk, "JPEG", exif=exif(65535, b"R03\0")))
    assert photo.warning is None


def test_a_damaged_file_keeps_its_colors_and_names_both_faults() -> None:
    damaged_text = png_chunk(b"tEXt", b"Title\0a")[:-4] + b"\0\0\0\0"
    sound = with_chunks(PLAIN, cICP=cicp(12, 13))
    photo = images.decode_photo(sound[:33] + damaged_text + sound[33:])
    np.testing.assert_array_equal(photo.image_HWC, images.decode_photo(sound).image_HWC)
    assert photo.warning == "wrong checksum in tEXt, which was left out"
    unknown = with_chunks(PLAIN, cICP=cicp(9, 16))
    photo = images.decode_photo(unknown[:33] + damaged_text + unknown[33:])
    assert photo.warning is not None
    assert "wrong checksum in tEXt" in photo.warning
    assert "CICP primaries 9, transfer 16" in photo.warning

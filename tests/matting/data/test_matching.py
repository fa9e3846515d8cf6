"""Names of images and mattes that agree in another form: composed and decomposed accents, names that predict writes."""

from pathlib import Path

import pytest

from matting.data.pairs import Pairing, PairsError, RawPairOptions, find_pairs

COMPOSED, DECOMPOSED = "Zo\u00e9", "Zoe\u0301"  # they look alike


def pairing(root: Path, *files: str) -> Pairing:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return find_pairs(str(root), RawPairOptions(max_unpaired_fraction=1))


def names(found: Pairing) -> list[tuple[str, str]]:
    return [(pair.key, "/".join(pair.matte_uri.rsplit("/", 2)[1:])) for pair in found.pairs]


@pytest.mark.parametrize(("image", "matte"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_names_pair_in_either_form(tmp_path: Path, image: str, matte: str, suffix: str) -> None:
    found = pairing(tmp_path, f"images/{image}.jpg", f"mattes/{matte}{suffix}.png")
    assert names(found) == [(f"images/{image}.jpg", f"mattes/{matte}{suffix}.png")]
    assert found.unpaired == ()


def test_folders_pair_in_either_form(tmp_path: Path) -> None:
    found = pairing(
        tmp_path,
        f"clip_img/{COMPOSED}/clip_0/a.jpg",
        f"matting/{DECOMPOSED}/matting_0/a.png",
        "clip_img/1/clip_0/b.jpg",
    )
    assert [pair.key for pair in found.pairs] == [f"clip_img/{COMPOSED}/clip_0/a.jpg"]


def test_both_forms_pair_with_their_own(tmp_path: Path) -> None:
    forms = (COMPOSED, DECOMPOSED)
    found = pairing(tmp_path, *(f"images/{form}.jpg" for form in forms), *(f"mattes/{form}.png" for form in forms))
    assert sorted(names(found)) == sorted((f"images/{form}.jpg", f"mattes/{form}.png") for form in forms)


def test_names_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    found = pairing(
        tmp_path,
        *(f"images/{form}.jpg" for form in (COMPOSED, DECOMPOSED)),
        *(f"mattes/{COMPOSED}{suffix}.png" for suffix in ("", ".jpg")),
        *("images/b.jpg", "mattes/b.png"),
    )
    assert [pair.key for pair in found.pairs] == ["images/b.jpg"]
    reasons = {reason for _, reason in found.unpaired}
    assert len(reasons) == 1
    (reason,) = reasons
    for name in (f"images/{COMPOSED}.jpg", f"images/{DECOMPOSED}.jpg"):
        assert f"{name} ({name!a})" in reason


@pytest.mark.parametrize(
    "other",
    [
        "IMG_7",  # case
        "img_7\u200b",  # zero-width space
        "img\u00ad_7",  # soft hyphen
        "\u0456mg_7",  # Cyrillic i
        "img_\uff17",  # full-width 7
    ],
)
def test_matte_that_only_looks_like_its_photo_is_told(tmp_path: Path, other: str) -> None:
    found = pairing(tmp_path, "images/img_7.jpg", f"mattes/{other}.png", "images/b.jpg", "mattes/b.png")
    assert [pair.key for pair in found.pairs] == ["images/b.jpg"]
    expected = f"has no matte; looked for mattes/img_7.png; a name that looks alike differs: {f'mattes/{other}'!a} for "
    assert dict(found.unpaired)["images/img_7.jpg"] == f"{expected}'mattes/img_7'"


def test_mattes_named_as_predict_names_them_pair(tmp_path: Path) -> None:
    found = pairing(tmp_path, "images/x/a.jpg", "mattes/x/a.jpg.png", "images/b.v2.PNG", "mattes/b.v2.PNG.png")
    assert names(found) == [("images/b.v2.PNG", "mattes/b.v2.PNG.png"), ("images/x/a.jpg", "x/a.jpg.png")]
    assert found.unpaired == ()


def test_mattes_named_as_predict_names_them_tell_suffixes_apart(tmp_path: Path) -> None:
    found = pairing(tmp_path, "images/a.jpg", "images/a.png", "mattes/a.jpg.png", "mattes/a.png.png")
    assert names(found) == [("images/a.jpg", "mattes/a.jpg.png"), ("images/a.png", "mattes/a.png.png")]


def test_stem_comes_before_the_whole_name(tmp_path: Path) -> None:
    found = pairing(tmp_path, "images/a.jpg", "images/a.jpg.jpg", "mattes/a.jpg.png", "mattes/a.png")
    assert names(found) == [("images/a.jpg", "mattes/a.png"), ("images/a.jpg.jpg", "mattes/a.jpg.png")]


def test_two_mattes_of_one_photo_are_ambiguous(tmp_path: Path) -> None:
    found = pairing(tmp_path, "images/a.jpg", "mattes/a.png", "mattes/a.jpg.png", "images/b.jpg", "mattes/b.png")
    assert [pair.key for pair in found.pairs] == ["images/b.jpg"]
    reason = "is ambiguous: images/a.jpg could go with mattes/a.jpg.png, mattes/a.png"
    assert found.unpaired == tuple((key, reason) for key in ("images/a.jpg", "mattes/a.jpg.png", "mattes/a.png"))


def test_no_pairs_at_all_names_the_difference(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"looks alike differs: 'mattes/A' for 'mattes/a'"):
        pairing(tmp_path, "images/a.jpg", "mattes/A.png")

"""Predictions of other systems: which file is whose, whatever the folders, suffixes and accents."""

from jobs.evaluation.alphas import find_predictions, prediction_names


def test_names_go_from_the_whole_key_to_the_stem() -> None:
    assert prediction_names("images/x/a.jpg") == [
        *("images/x/a.jpg.png", "images/x/a.png"),
        *("x/a.jpg.png", "x/a.png"),
        *("a.jpg.png", "a.png"),
    ]


def test_first_name_that_exists_is_taken() -> None:
    files = ["images/a.jpg.png", "images/a.png", "a.png", "b.png", "x/c.png", "d.jpg.png"]
    keys = ["images/a.jpg", "images/b.jpg", "images/x/c.jpg", "images/d.jpg", "images/e.jpg"]
    assert find_predictions(keys, files) == {
        "images/a.jpg": "images/a.jpg.png",
        "images/b.jpg": "b.png",
        "images/x/c.jpg": "x/c.png",
        "images/d.jpg": "d.jpg.png",
    }


def test_file_that_could_be_two_photos_is_nobodys() -> None:
    keys = ["images/x/a.jpg", "images/y/a.jpg", "images/y/b.jpg", "images/y/b.png"]
    assert find_predictions(keys, ["a.png", "b.png", "images/y/b.png"]) == {}
    assert find_predictions(keys, ["y/a.png", "images/y/b.jpg.png", "b.png.png"]) == {
        "images/y/a.jpg": "y/a.png",
        "images/y/b.jpg": "images/y/b.jpg.png",
        "images/y/b.png": "b.png.png",
    }


def test_accents_may_be_stored_in_another_form() -> None:
    composed, decomposed = "images/Zo\u00e9.jpg", "Zoe\u0301.png"
    assert find_predictions([composed], [decomposed]) == {composed: decomposed}
    both = [composed, "images/Zoe\u0301.jpg"]
    assert find_predictions(both, [f"{key}.png" for key in both]) == {key: f"{key}.png" for key in both}
    assert find_predictions(both, [decomposed]) == {}

"""Wording of messages: lists of names, and names that look alike."""

from matting.messages import first_few, look_alike, normalized, tell_apart


def test_five_items_are_named_and_the_rest_counted() -> None:
    assert first_few(list("abcde")) == "a; b; c; d; e"
    assert first_few(list("abcdefg")) == "a; b; c; d; e; and 2 more"


def test_normal_form_is_composed() -> None:
    assert normalized("e\u0301") == normalized("\u00e9") == "\u00e9"
    assert normalized("a") == "a"


def test_names_that_look_alike_share_a_form() -> None:
    assert (
        len({look_alike(name) for name in ("Ab c", "ab\u00a0c", "AB\u200bC ".replace("B", "b ").strip(), "ab  c")}) == 1
    )
    assert look_alike("a") != look_alike("b")


def test_only_names_that_look_alike_are_escaped() -> None:
    assert tell_apart(["a", "\u00e9"]) == "a, \u00e9"
    assert tell_apart(["e\u0301", "\u00e9", "b"]) == "e\u0301 ('e\\u0301'), \u00e9 ('\\xe9'), b"

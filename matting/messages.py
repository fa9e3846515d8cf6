"""Wording that the messages of several modules share."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

_LONGEST = 300  # characters of an item in a message

# Letters of other scripts that look like Latin ones.
_LIKE_LATIN = str.maketrans("аеорсухіјѕԁһАВЕКМНОРСТХІЈЅοΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aeopcyxijsdhABEKMHOPCTXIJSoABEZHIKMNOPTYX")


def first_few(items: list[str]) -> str:
    """Return the first five items, separated by semicolons, and the number of those left out, if any.

    Long items are cut: a column of names may hold whole images.
    """
    shown = [item if len(item) <= _LONGEST else f"{item[:_LONGEST]}…" for item in items[:5]]
    return "; ".join(shown) + (f"; and {len(items) - 5} more" if len(items) > 5 else "")


def normalized(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), in which names that some systems store apart are equal."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def look_alike(name: str) -> str:
    """Return a form that names share which look alike: other case or spaces, invisible letters, other scripts."""
    letters = unicodedata.normalize("NFKC", name).translate(_LIKE_LATIN)
    visible = "".join(letter for letter in letters if unicodedata.category(letter) not in ("Cf", "Mn", "Cc"))
    return " ".join(visible.casefold().split())


def tell_apart(names: Sequence[str]) -> str:
    """Return names separated by commas; those that look alike also with their characters escaped."""
    forms = Counter(look_alike(name) for name in dict.fromkeys(names))
    return ", ".join(f"{name} ({name!a})" if forms[look_alike(name)] > 1 else name for name in names)

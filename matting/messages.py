"""Wording that the messages of several modules share."""


def first_few(items: list[str]) -> str:
    """Return the first five items, separated by semicolons, and the number of those left out, if any."""
    return "; ".join(items[:5]) + (f"; and {len(items) - 5} more" if len(items) > 5 else "")

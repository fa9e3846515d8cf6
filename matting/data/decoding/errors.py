"""The one error about image files."""


class BadImage(ValueError):
    """Bytes that are no usable image. The message gives the reason in one line."""

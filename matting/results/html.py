"""HTML pages from the templates beside this module: one file each, with every image inside as a data URI."""

import base64
import hashlib
import io
from numbers import Integral, Real
from pathlib import Path

import jinja2
from PIL import Image


def render(template: str, **values: object) -> str:
    """Fill in a template of the folder `templates`.

    Text is escaped. Characters that UTF-8 cannot hold, which odd file names have, become "?". Two filters are defined:
    `number` is :func:`format_number`; `digest` is the hash of an inline style or script, by which a page's
    Content-Security-Policy allows that text and no other.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "digest": _digest}
    return environment.get_template(template).render(values).encode(errors="replace").decode()


def embed_image(name: str, image: Image.Image) -> dict[str, str | int]:
    """Encode an image for a template: its name, uri, width and height.

    The URI holds a WebP: an alpha channel is exact, everything else lossy.
    """
    encoded = io.BytesIO()
    image.save(encoded, format="WEBP", quality=85)
    uri = "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode()
    return {"name": name, "uri": uri, "width": image.width, "height": image.height}


def format_number(value: object) -> str:
    """Format integers in full and other numbers with four significant digits; everything else as its text."""
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        # From 999.95 on, "#.4g" ends in a bare point or switches to exponents.
        return f"{float(value):,.0f}" if abs(float(value)) >= 999.95 else f"{float(value):#.4g}"
    return str(value)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

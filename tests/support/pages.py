"""A reader of the project's HTML pages, which fails on tags that do not nest."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image


class PageReader(HTMLParser):
    """Everything that a page shows and refers to."""

    VOID = ("meta", "img", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.titles: list[str] = []
        self.images: list[dict[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.titles += [value for name, value in attrs if name == "title"]
        if tag in ("img", "image"):
            self.images.append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def embedded_images(html: str) -> list[Image.Image]:
    """Decode all images of a page, in order."""
    uris = [tag.get("src") or tag["href"] for tag in PageReader(html).images]
    return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]

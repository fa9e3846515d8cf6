"""The page that a prediction run leaves: what became of the inputs, in figures and in pictures.

Cards (photo, alpha, cutout, or why there is none), counts, reasons of failures and a histogram
-> page: HTML from gallery.html.j2, with every picture inside as a data URI, to filter and to zoom without a server.
Knows no models, no ledger and no storage: whoever calls has the arrays and the numbers, and writes what comes back.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

from matting.images import Pixels
from matting.report import embedded, render

Group = Literal["failed", "least confident", "sample"]

THUMBNAIL = 320  # longest side of a picture inside the page; sixty photos of 178 × 218 stay below 2 MB
SHOWN_REASONS = 100
COLOUR = "#3f8f6b"  # under the cutouts until another is chosen: strong enough to show a rim of the old background


@dataclass(frozen=True)
class Card:
    """One input of the run. Arrays are uint8 of one height and width, 255 is opaque.

    Args:
        key: of the input.
        group: under which heading it stands.
        facts: shown under the pictures; for what failed, the reason.
        image_HWC: the photo; None where it could not be decoded.
        alpha_HW, cutout_HWC: what was predicted, and RGBA (`matting.refine.cutout`); None where it failed.

    Only thumbnails of at most THUMBNAIL pixels a side are shown: who collects many cards can shrink their arrays first.
    """

    key: str
    group: Group
    facts: Mapping[str, object]
    image_HWC: Pixels | None = None
    alpha_HW: Pixels | None = None
    cutout_HWC: Pixels | None = None

    def __post_init__(self) -> None:
        pixels = self.image_HWC, self.alpha_HW, self.cutout_HWC
        image, *layers = [None if array is None else array.shape[:2] for array in pixels]
        if layers not in ([None, None], [image, image]):
            raise ValueError(
                f"card {self.key!r}: image is {image}, alpha and cutout are {layers}; expected all of one height and "
                "width, or neither alpha nor cutout"
            )


def page(
    *,
    title: str,
    command: str,
    facts: Mapping[str, object],
    counts: Mapping[str, int],
    failures: Mapping[str, int],
    coverage: Sequence[int],
    cards: Sequence[Card],
) -> str:
    """The run's HTML page: one file, no network. Its script only filters and enlarges: without it all is there.

    Args:
        title: also the page's heading.
        command: what to type to get this run again.
        facts: what the numbers rest on: throughput, model, settings, output, times.
        counts: the headline: inputs done, failed, left and so on.
        failures: reason -> inputs. The page has the hundred most frequent.
        coverage: histogram of the share of each picture that is person: photos in equal bins of [0, 1].
        cards: the gallery, in the order to show within each group.
    """
    groups = {group: [(card, _panels(card)) for card in cards if card.group == group] for group in get_args(Group)}
    return render(
        "gallery.html.j2",
        title=title,
        command=command,
        facts=facts,
        counts=counts,
        failures=Counter(failures).most_common(SHOWN_REASONS),
        reasons=len(failures),
        coverage=coverage,
        groups=groups,
        total=len(cards),
        colour=COLOUR,
    )


def _panels(card: Card) -> dict[str, dict[str, str | int]]:
    """Those of photo, alpha and cutout that the card has, by name."""
    pixels = {}
    if card.image_HWC is not None:
        pixels["photo"] = card.image_HWC
    if card.alpha_HW is not None and card.cutout_HWC is not None:
        pixels |= {"alpha": card.alpha_HW, "cutout": card.cutout_HWC}
    return {name: embedded(name, _thumbnail(array)) for name, array in pixels.items()}


def _thumbnail(pixels: Pixels) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture

"""The page of a prediction: photos with their alphas and cutouts, counts, reasons of failures and a histogram.

Callers have the arrays and numbers and write the returned text; this module knows no models, no ledger and no storage.
The template is templates/gallery.html.j2. Its script filters and enlarges cards; without it, all cards are shown.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

from matting.data.images import Pixels
from matting.results.html import embed_image, render

Group = Literal["failed", "least confident", "sample"]

THUMBNAIL = 320  # longest side in pixels of an image on the page; sixty photos of 178 × 218 take less than 2 MB
SHOWN_REASONS = 100
CUTOUT_COLOUR = "#3f8f6b"  # initial colour under cutouts, strong enough to show a rim of the old background

EXPLANATIONS = {
    "coverage": "Coverage is the mean alpha of a photo: the fraction of it that is person, from 0 to 1.",
    "confidence": "Confidence is how decided a matte is: 1 where every pixel is clear or solid. The photos with the "
    "lowest confidence are the likeliest to have a bad matte.",
}


@dataclass(frozen=True)
class Card:
    """One photo of the run. Arrays are uint8, 255 is opaque.

    The page shows thumbnails of at most THUMBNAIL pixels a side, so callers with many cards may shrink arrays first.

    Args:
        key: Key of the photo.
        group: Heading under which the card stands.
        facts: Facts under the images; the reason of a failure.
        image_HWC: Photo; None if it could not be decoded.
        alpha_HW: Predicted alpha, of the photo's size; None if the photo failed, or its alpha is not known.
        cutout_HWC: Cutout: RGBA of the photo's size beside an alpha. Without an alpha it may be cropped, so it has any
            size, and be on a background, RGB. None if the photo failed.
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
        if self.alpha_HW is not None and layers != [image, image]:
            raise ValueError(
                f"card {self.key!r}: image is {image}, alpha and cutout are {layers}; expected all of one height and "
                "width, or no alpha"
            )


def gallery_page(
    *,
    title: str,
    command: str,
    facts: Mapping[str, object],
    counts: Mapping[str, int],
    failures: Mapping[str, int],
    coverage: Sequence[int],
    cards: Sequence[Card],
) -> str:
    """Return the page as HTML: one file that loads nothing.

    Args:
        title: Title and heading of the page.
        command: Command that reproduces the run.
        facts: Circumstances of the figures: throughput, model, settings, output, times.
        counts: Numbers under the heading: photos done, failed, left and so on.
        failures: Number of photos by reason. The page has the hundred most frequent reasons.
        coverage: Histogram of coverage: number of photos in equal bins of [0, 1].
        cards: Cards of the gallery, in the order to show within each group.
    """
    groups = {group: [(card, _card_images(card)) for card in cards if card.group == group] for group in get_args(Group)}
    return render(
        "gallery.html.j2",
        title=title,
        command=command,
        facts=facts,
        counts=counts,
        failures=Counter(failures).most_common(SHOWN_REASONS),
        reasons=len(failures),
        coverage=coverage,
        explanations=EXPLANATIONS,
        groups=groups,
        total=len(cards),
        colour=CUTOUT_COLOUR,
    )


def _card_images(card: Card) -> dict[str, dict[str, str | int]]:
    """Return the images of a card by name: photo, alpha, and cutout or composite, as far as it has them."""
    is_composite = card.cutout_HWC is not None and card.alpha_HW is None and card.cutout_HWC.shape[2] == 3
    cutout = "composite" if is_composite else "cutout"
    pixels = {"photo": card.image_HWC, "alpha": card.alpha_HW, cutout: card.cutout_HWC}
    return {name: embed_image(name, _thumbnail(array)) for name, array in pixels.items() if array is not None}


def _thumbnail(pixels: Pixels) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image

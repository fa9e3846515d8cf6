"""Options that several studies have, and the raw pairs that they read."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from matting.data import images
from matting.data.images import Pixels
from matting.data.pairs import Pair


def parser_of(study: str) -> argparse.ArgumentParser:
    """Return a parser of --pairs and --checkpoint, to which the study may add options."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.studies.{study}")
    parser.add_argument("--pairs", required=True, help="folder of pairs")
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder")
    return parser


def decoded(pairs: Sequence[Pair]) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield image_HWC and alpha_HW of raw pairs in local files, at full size."""
    for pair in pairs:
        image_HWC = images.decode_image(Path(pair.image_uri).read_bytes())
        yield image_HWC, images.decode_alpha(Path(pair.matte_uri).read_bytes())

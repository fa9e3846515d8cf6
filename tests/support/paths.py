"""Paths of the checkout and of the data beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"  # real photos and pairs; a plain checkout has none

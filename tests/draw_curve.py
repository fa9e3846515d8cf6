"""The validation curves of a training as a picture, such as the night's: those of the run's page, on white.

    python -m tests.draw_curve runs/night/metrics.jsonl .github/night.svg

Not a test.
"""

import argparse
import json
from pathlib import Path

from matting import report


def main() -> None:
    """Draw what metrics.jsonl has of validation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("metrics", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.metrics.read_text().splitlines()]
    svg = report.curves([row for row in rows if "val_mad" in row])
    options.picture.write_text(svg.replace("<svg", '<svg style="background: white"', 1))


if __name__ == "__main__":
    main()

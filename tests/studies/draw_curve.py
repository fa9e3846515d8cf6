"""Study: draw the validation curves of a run as an SVG on white, as its page shows them.

python -m tests.studies.draw_curve runs/night/metrics.jsonl night.svg
"""

import argparse
import json
from pathlib import Path

from matting.results.curves import draw_curves


def main() -> None:
    """Write the SVG."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.draw_curve")
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of a run")
    parser.add_argument("output", type=Path, help="SVG file to write")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.metrics.read_text().splitlines()]
    svg = draw_curves([row for row in rows if "val_mad" in row])
    options.output.write_text(svg.replace("<svg", '<svg style="background: white"', 1))


if __name__ == "__main__":
    main()

"""Command line of the study."""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.studies.soak.faults import plan
from tests.studies.soak.study import prepared


def main() -> int:
    """Run the study and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.soak")
    parser.add_argument("--faults", type=int, default=50, help="number of faults")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the faults")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as root, prepared(Path(root), options.seed) as soak:
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        for fault in plan(options.faults, options.seed):
            try:
                print(soak.suffer(fault), flush=True)
            except Exception as error:
                print(f"{fault}: violation with --seed {options.seed}: {error}", flush=True)
                return 1
    kinds = Counter(fault.kind for fault in plan(options.faults, options.seed))
    summary = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    print(f"{options.faults} faults ({summary}) in {(time.monotonic() - began) / 60:.1f} min: everything holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())

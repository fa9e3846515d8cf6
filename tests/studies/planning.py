"""Study: time and peak memory of `python jobs/predict.py --plan` on a million photos that are done.

    python -m tests.studies.planning [PHOTOS]

It makes that many empty files and a ledger in which all but three are done.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from matting.data.photos import find_photos
from matting.nn import checkpoint
from matting.results import ledger
from matting.results.pipeline import PredictionSettings
from tests.support.ledgers import ledger_row
from tests.support.paths import ROOT
from tests.support.predictions import new_checkpoint

WRITE = "import sys; from tests.studies.planning import *; write_collection(Path(sys.argv[1]), int(sys.argv[2]))"


def write_collection(root: Path, count: int) -> None:
    """Write empty photos in folders of a thousand, and their ledger."""
    for number in range(count):
        if number % 1000 == 0:
            (root / f"photos/{number // 1000:05d}").mkdir(parents=True)
        (root / f"photos/{number // 1000:05d}/{number:09d}.jpg").touch()
    photos = find_photos(str(root / "photos")).table.slice(0, count - 3)
    constants = {
        **ledger_row("", run="20261122T000000Z-00000000"),
        "model": checkpoint.load(new_checkpoint(root / "checkpoint", seed=0)).identity,
        "settings": str(PredictionSettings(("alpha",), "png", "guided", "files", "fp32")),
        "outputs": None,
    }
    columns = {name: photos[name] for name in ("key", "etag", "size")}
    for name in ledger.LEDGER_SCHEMA.names[len(columns) :]:
        columns[name] = pa.repeat(pa.scalar(constants[name], ledger.LEDGER_SCHEMA.field(name).type), len(photos))
    ledger.write_part(str(root / "out"), constants["run"], 0, pa.table(columns))


def main() -> None:
    """Print the command's output, its time and its peak memory."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.planning")
    parser.add_argument("photos", nargs="?", type=int, default=1_000_000, help="number of photos")
    count = parser.parse_args().photos
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # In a separate process, whose memory is not measured.
        subprocess.run([sys.executable, "-c", WRITE, folder, str(count)], check=True, cwd=ROOT)
        options = [f"--checkpoint={root / 'checkpoint'}", f"--images={root / 'photos'}", f"--output={root / 'out'}"]
        began = time.monotonic()
        command = [
            "taskset",
            "-c",
            "0",
            sys.executable,
            str(ROOT / "jobs/predict.py"),
            *options,
            "--precision=fp32",
            "--plan",
        ]
        _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
        assert status == 0
        print(f"{time.monotonic() - began:.1f} s on one core, {usage.ru_maxrss / 1e3:,.0f} MB")


if __name__ == "__main__":
    main()

"""How long does it take to see that a million photos are done? Times `python jobs/predict.py --plan` on real files.

    python -m tests.measure_planning [PHOTOS]

A slow study, not a test: it makes so many empty files and a ledger in which all but three are done.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from matting import checkpoint, ledger
from matting.outputs import Settings
from matting.photos import find_photos
from tests.jobs import ROOT
from tests.test_predict import new_checkpoint

WRITE = "import sys; from tests.measure_planning import *; write_collection(Path(sys.argv[1]), int(sys.argv[2]))"


def write_collection(root: Path, count: int) -> None:
    """Empty photos in folders of a thousand, and their ledger."""
    for number in range(count):
        if number % 1000 == 0:
            (root / f"photos/{number // 1000:05d}").mkdir(parents=True)
        (root / f"photos/{number // 1000:05d}/{number:09d}.jpg").touch()
    photos = find_photos(str(root / "photos")).table.slice(0, count - 3)
    constants = {
        "model": checkpoint.load(new_checkpoint(root / "checkpoint", seed=0)).identity,
        "settings": str(Settings(("alpha",), "png", "guided", "files")),
        "status": "done",
        "error": None,
        "width": 178,
        "height": 218,
        "coverage": 0.5,
        "confidence": 0.75,
        "outputs": None,
        "run": "20261122T000000Z-00000000",
        "finished_at": datetime(2026, 11, 22),
    }
    columns = {name: photos[name] for name in ("key", "etag", "size")}
    for name, value in constants.items():
        columns[name] = pa.repeat(pa.scalar(value, ledger.SCHEMA.field(name).type), len(photos))
    ledger.write_part(str(root / "out"), constants["run"], 0, pa.table(columns))


def main() -> None:
    """Print what the command says, the time and the memory that it took."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # In a process apart, so that its memory is not counted.
        subprocess.run([sys.executable, "-c", WRITE, folder, str(count)], check=True, cwd=ROOT)
        options = [f"--checkpoint={root / 'checkpoint'}", f"--images={root / 'photos'}", f"--output={root / 'out'}"]
        began = time.monotonic()
        command = ["taskset", "-c", "0", sys.executable, str(ROOT / "jobs/predict.py"), *options, "--plan"]
        _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
        assert status == 0
        print(f"{time.monotonic() - began:.1f} s on one core, {usage.ru_maxrss / 1e3:,.0f} MB")


if __name__ == "__main__":
    main()

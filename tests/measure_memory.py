"""Does memory grow with the number of pairs? Trains on 1× and 10× the rows and prints the most that each process had.

    python -m tests.measure_memory [ROWS]

A slow study, not a test. The rows repeat the same 200 files under other keys. Nothing is cached: the cache lies in the
object store, which bounds it.
"""

import csv
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests import jobs
from tests.drawing import write_folders

FILES = 200
KINDS = {
    "jobs/train.py": "driver",
    "RayTrainWorker": "worker",
    "ReadPairs": "reading task",
    "SplitCoordinator": "feeder",
}


def write_manifest(root: Path, rows: int) -> Path:
    """So many rows over the same files."""
    path = root / f"{rows}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "image", "matte"])
        for row in range(rows):
            name = f"person-{row % FILES:03d}.png"
            writer.writerow([f"{row:07d}.png", f"images/{name}", f"mattes/{name}"])
    return path


def peaks(process: int) -> dict[str, float]:
    """Megabytes of its own (not of the shared object store) that each kind of process below this one has now."""
    found: dict[str, float] = {}
    for pid in [process, *jobs.descendants(process)]:
        kinds = [kind for mark, kind in KINDS.items() if mark in jobs.command_line(pid)]
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in status.splitlines():
            if kinds and line.startswith("RssAnon:"):
                found[kinds[0]] = max(found.get(kinds[0], 0), int(line.split()[1]) / 1024)
    return found


def measure(root: Path, rows: int) -> Mapping[str, float]:
    """Train two epochs on so many rows; the highest peaks."""
    highest: dict[str, float] = {}
    options = ["--width=4", "--size=32", "--epochs=2", "--batch=64", "--cache=off", f"--output={root / str(rows)}"]
    with jobs.running("train", f"--data={write_manifest(root, rows)}", *options) as process:
        assert process.stdout is not None
        for line in process.stdout:  # a line every few seconds
            print(f"  {line}", end="", flush=True)
            for kind, megabytes in peaks(process.pid).items():
                highest[kind] = max(highest.get(kind, 0), megabytes)
    return highest


def main() -> None:
    """Print the table."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folders(root, FILES, 64)
        one, ten = measure(root, rows), measure(root, 10 * rows)
    for kind, megabytes in one.items():
        print(f"{kind:14} {megabytes:7.0f} MB at {rows:,} pairs {ten[kind]:7.0f} MB at {10 * rows:,}")


if __name__ == "__main__":
    main()

"""Does memory grow with the collection? Runs a job on few and on many rows and prints the most that each process had.

    python -m tests.measure_memory train [ROWS]      two epochs, on 1x and 10x the pairs
    python -m tests.measure_memory predict [ROWS]    on 1x and 20x the photos

A slow study, not a test. The rows repeat the same 200 files under other keys. Training caches nothing: the cache lies
in the object store, which bounds it.
"""

import csv
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import jobs
from tests.drawing import write_folders
from tests.test_predict import new_checkpoint

FILES = 200


@dataclass(frozen=True)
class Study:
    """A job, its options, and its processes by a part of their command lines."""

    job: str
    options: tuple[str, ...]
    times: int
    kinds: Mapping[str, str]


STUDIES = {
    "train": Study(
        "train",
        ("--width=4", "--size=32", "--depth=2", "--epochs=2", "--batch=64", "--cache=off"),
        10,
        {"jobs/train.py": "driver", "ReadPairs": "reading task"},
    ),
    "predict": Study("predict", ("--write=alpha,cutout",), 20, {"jobs/predict.py": "driver", "MapBatches": "task"}),
}


def write_manifest(root: Path, rows: int) -> Path:
    """So many pairs over the same files."""
    path = root / f"{rows}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "image", "matte"])
        for row in range(rows):
            name = f"person-{row % FILES:03d}.png"
            writer.writerow([f"{row:07d}.png", f"images/{name}", f"mattes/{name}"])
    return path


def write_photos(root: Path, rows: int) -> Path:
    """So many names for the same files."""
    folder = root / f"photos-{rows}"
    folder.mkdir()
    for row in range(rows):
        (folder / f"{row:07d}.png").hardlink_to(root / f"images/person-{row % FILES:03d}.png")
    return folder


def peaks(study: Study, process: int) -> dict[str, float]:
    """Megabytes of its own (not of the shared object store) that each kind of process below this one has now."""
    found: dict[str, float] = {}
    for pid in [process, *jobs.descendants(process)]:
        kinds = [kind for mark, kind in study.kinds.items() if mark in jobs.command_line(pid)]
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in status.splitlines():
            if kinds and line.startswith("RssAnon:"):
                found[kinds[0]] = max(found.get(kinds[0], 0), int(line.split()[1]) / 1024)
    return found


def measure(study: Study, root: Path, rows: int) -> dict[str, float]:
    """Run the job on so many rows; the highest peaks, looked at every fifth of a second."""
    highest: dict[str, float] = {}
    options = [*study.options, f"--output={root / str(rows)}"]
    if study.job == "train":
        options.append(f"--data={write_manifest(root, rows)}")
    else:
        options += [f"--images={write_photos(root, rows)}", f"--checkpoint={root / 'checkpoint'}"]
    ended = threading.Event()
    with jobs.running(study.job, *options) as process:

        def watch() -> None:
            while not ended.wait(0.2):
                for kind, megabytes in peaks(study, process.pid).items():
                    highest[kind] = max(highest.get(kind, 0), megabytes)

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
        ended.set()
        watcher.join()
    return highest


def main() -> None:
    """Print the table."""
    study = STUDIES[sys.argv[1]]
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folders(root, FILES, 64)
        new_checkpoint(root / "checkpoint", seed=0)
        few, many = measure(study, root, rows), measure(study, root, study.times * rows)
    for kind, megabytes in few.items():
        print(f"{kind:14} {megabytes:7.0f} MB at {rows:,} rows {many[kind]:7.0f} MB at {study.times * rows:,}")


if __name__ == "__main__":
    main()

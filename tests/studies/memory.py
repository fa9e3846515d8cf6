"""Study: the peak memory of a job's processes on few and on many rows.

    python -m tests.studies.memory train [ROWS]      two epochs, on 1x and 10x the pairs
    python -m tests.studies.memory predict [ROWS]    on 1x and 20x the photos

The rows repeat the same 200 files under other keys. Training runs without its cache, which lives in Ray's object store
and is bounded by it.
"""

import argparse
import csv
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support import jobs
from tests.support.drawing import write_folders
from tests.support.predictions import new_checkpoint

FILES = 200


@dataclass(frozen=True)
class Study:
    """Settings of the study of one job."""

    job: str
    options: tuple[str, ...]
    factor: int  # between few and many rows
    kinds: Mapping[str, str]  # part of a process's command line -> its name in the table


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
    """Write a table of `rows` pairs that repeat the same files. Return its path."""
    path = root / f"{rows}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "image", "matte"])
        for row in range(rows):
            name = f"person-{row % FILES:03d}.png"
            writer.writerow([f"{row:07d}.png", f"images/{name}", f"mattes/{name}"])
    return path


def write_photos(root: Path, rows: int) -> Path:
    """Link `rows` photos to the same files. Return their folder."""
    folder = root / f"photos-{rows}"
    folder.mkdir()
    for row in range(rows):
        (folder / f"{row:07d}.png").hardlink_to(root / f"images/person-{row % FILES:03d}.png")
    return folder


def memory_now(study: Study, process: int) -> dict[str, float]:
    """Return the current memory of each kind of process below this one, in megabytes, object store excluded."""
    largest: dict[str, float] = {}
    for pid in [process, *jobs.descendants(process)]:
        kinds = [kind for mark, kind in study.kinds.items() if mark in jobs.command_line(pid)]
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for line in status.splitlines():
            if kinds and line.startswith("RssAnon:"):
                largest[kinds[0]] = max(largest.get(kinds[0], 0), int(line.split()[1]) / 1024)
    return largest


def measure(study: Study, root: Path, rows: int) -> dict[str, float]:
    """Run the job on `rows` rows. Return the peak memory of each kind of process, sampled five times a second."""
    peaks: dict[str, float] = {}
    options = [*study.options, f"--output={root / str(rows)}"]
    if study.job == "train":
        options.append(f"--data={write_manifest(root, rows)}")
    else:
        options += [f"--images={write_photos(root, rows)}", f"--checkpoint={root / 'checkpoint'}"]
    ended = threading.Event()
    with jobs.running(study.job, *options) as process:

        def watch() -> None:
            while not ended.wait(0.2):
                for kind, megabytes in memory_now(study, process.pid).items():
                    peaks[kind] = max(peaks.get(kind, 0), megabytes)

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
        ended.set()
        watcher.join()
    return peaks


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.memory")
    parser.add_argument("job", choices=STUDIES)
    parser.add_argument("rows", nargs="?", type=int, default=1_000, help="number of pairs or photos of the small run")
    options = parser.parse_args()
    study, rows = STUDIES[options.job], options.rows
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folders(root, FILES, 64)
        new_checkpoint(root / "checkpoint", seed=0)
        few, many = measure(study, root, rows), measure(study, root, study.factor * rows)
    for kind, megabytes in few.items():
        print(f"{kind:14} {megabytes:7.0f} MB at {rows:,} rows {many[kind]:7.0f} MB at {study.factor * rows:,}")


if __name__ == "__main__":
    main()

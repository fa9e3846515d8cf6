"""Results of the undisturbed jobs, and the comparison of other runs with them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from matting.data import images
from matting.nn import checkpoint
from matting.results import ledger
from matting.storage import store
from matting.storage.uri import is_local
from tests.studies.soak.faults import EPOCHS

POISONED = "0/poison.jpg"  # key of the photo that ends its process


class ViolationError(Exception):
    """Result of a run that differs from the references. The message names it."""


@dataclass(frozen=True)
class References:
    """Results of the undisturbed jobs.

    Attributes:
        run: Run folder of the training.
        history: Rows of its metrics.jsonl.
        mattes: Bytes of each matte of the prediction, by the photo's key.
    """

    run: str
    history: list[dict[str, Any]]
    mattes: dict[str, bytes]

    @classmethod
    def read(cls, place: str) -> "References":
        """Read the results of a training named "run" and a prediction, both with this output."""
        mattes = {
            file.key.removesuffix(".png"): store.read_bytes(f"{place}/alpha/{file.key}")
            for file in store.list_files(f"{place}/alpha")
        }
        return cls(f"{place}/run", history(f"{place}/run"), mattes)

    def check_predict(
        self, output: str, others: frozenset[str] | set[str] = frozenset(), poisoned: bool = False
    ) -> None:
        """Check that the ledger has every photo once, in one part, and that exactly the reference outputs exist."""
        rows = ledger.read(output).to_pylist()
        if poisoned:
            failures = {row["key"]: row["error"] for row in rows if row["status"] == "failed"}
            expect("failed photos", list(failures), [POISONED])
            if "SIGSEGV" not in failures[POISONED]:
                raise ViolationError(f"the poisoned photo failed for another reason: {failures[POISONED]}")
            rows = [row for row in rows if row["key"] != POISONED]
        expect("keys of the ledger", [row["key"] for row in rows], sorted(self.mattes))
        expect("states", {row["status"] for row in rows}, {"done"})
        for row in rows:
            (path,) = row["outputs"]
            matte = store.read_bytes(f"{output}/{path}")
            height, width = images.decode_alpha(matte).shape
            expect(f"size of {path}", (width, height), (row["width"], row["height"]))
            if matte != self.mattes[row["key"]]:
                raise ViolationError(f"{path} has other bytes than undisturbed")
        others |= {"_lease"}  # a driver that was killed leaves its lease
        found = [name for name in names_in(output) if name.partition("/")[0] not in others]
        parts = [name for name in found if name.startswith("_ledger/")]
        expect("parts of the ledger", len(parts), 1)
        listed = {path for row in rows for path in row["outputs"]} | {*parts, "report.html", "summary.json"}
        expect("missing files", listed - set(found), set())
        expect("other files", set(found) - listed, set())

    def check_train(self, run: str) -> None:
        """Check that the run folder equals the reference, except for times."""
        rows = history(run)
        expect("rows of metrics.jsonl", timeless(rows), timeless(self.history))
        expect("epochs", [row["epoch"] for row in rows if "val_mad" in row], list(range(1, EPOCHS + 1)))
        steps = [row["step"] for row in rows]
        expect("steps", steps, sorted(set(steps)))
        names = names_in(run)
        events = [f"events/events.out.tfevents.{epoch:010}" for epoch in range(1, EPOCHS + 1)]
        expect("event files", [name for name in names if name.startswith("events/")], events)
        best = checkpoint.load(f"{run}/best")
        expect("best/", best.metrics["val_mad"], min(row["val_mad"] for row in rows))
        for name in ("best", f"epoch-{EPOCHS:05}"):
            checkpoint.load_train_state(f"{run}/{name}")
            weights, expected = (checkpoint.load(f"{uri}/{name}").model.state_dict() for uri in (run, self.run))
            for tensor in expected:
                if not torch.equal(weights[tensor], expected[tensor]):
                    raise ViolationError(f"{name}: {tensor} differs from that of the undisturbed run")
        whole = {"report.html", "summary.json", "run.json", "metrics.jsonl", "validation.parquet", "rejected.json"}
        expect("missing files", whole - set(names), set())
        expect("files in writing", [name for name in names if name.endswith(".partial")], [])


def expect(what: str, found: object, expected: object) -> None:
    """Raise ViolationError unless both are equal."""
    if found != expected:
        raise ViolationError(f"{what}: found {found}, expected {expected}")


def history(run: str) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in store.read_bytes(f"{run}/metrics.jsonl").splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without the columns that differ between two runs."""
    clocks = {"time", "samples_per_second", "waiting", "first_batch_seconds"}
    return [{name: value for name, value in row.items() if name not in clocks} for row in rows]


def names_in(place: str) -> list[str]:
    """Return the names of all files, partial ones included."""
    if is_local(place):
        return sorted(path.relative_to(place).as_posix() for path in Path(place).rglob("*") if path.is_file())
    return [file.key for file in store.list_files(place)]

"""All jobs on object storage, undisturbed and with a tenth of all requests refused, delayed or cut: one result."""

import json
from pathlib import Path

import pytest

from jobs import evaluate, pack, predict, train
from matting import ledger, storage
from tests import faults
from tests.drawing import write_folders

SMALL = ["--size=32", "--width=4", "--depth=2", "--batch=4", "--epochs=2"]
# Columns of the ledger that differ between two runs: the last, since a checkpoint says where its data was.
OF_THE_RUN = ("run", "finished_at", "outputs", "model")


def upload(local: Path, uri: str) -> None:
    for path in sorted(local.rglob("*.png")):
        storage.write_bytes(f"{uri}/{path.relative_to(local)}", path.read_bytes())


def run_all_jobs(pairs: str, output: str) -> None:
    pack.main([f"--pairs={pairs}", f"--output={output}/packed", "--split-seed=2"])
    train.main([f"--data={output}/packed", f"--output={output}", "--name=run", *SMALL])
    best = f"--checkpoint={output}/run/best"
    evaluate.main([best, f"--data={output}/packed", f"--output={output}/scores", "--split=all"])
    predict.main([best, f"--images={pairs}/images", f"--output={output}/results"])


def results(output: str) -> dict[str, object]:
    """All that must not depend on the network."""
    etags = {file.key: file.etag for file in storage.list_files(output)}
    made = {key: etag for key, etag in etags.items() if key.startswith(("packed/", "results/alpha"))}
    history = map(json.loads, storage.read_bytes(f"{output}/run/metrics.jsonl").splitlines())
    rows = ledger.read(f"{output}/results").drop_columns(OF_THE_RUN).to_pylist()
    return {
        "objects": made,
        "weights": etags["run/best/model.safetensors"],
        "scores": etags["scores/per_image.parquet"],
        "curve": [(row["step"], row.get("train_loss"), row.get("val_mad")) for row in history],
        "ledger": rows,
        "names": sorted(key for key in etags if not key.startswith(("run/", "results/_ledger"))),
    }


def attempts_logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "matting.attempts"]


@pytest.mark.usefixtures("ray_cluster")
def test_the_results_are_the_same_when_a_tenth_of_the_requests_fail(bucket, store_proxy, tmp_path, monkeypatch, caplog):
    write_folders(tmp_path, 12, 40)
    upload(tmp_path, f"{bucket}/pairs")
    run_all_jobs(f"{bucket}/pairs", f"{bucket}/undisturbed")
    assert attempts_logged(caplog) == []

    before, requests = store_proxy.faults.copy(), store_proxy.requests
    with monkeypatch.context() as trouble:
        trouble.setattr(store_proxy, "plan", faults.seeded_plan(0.1, seed=0))
        run_all_jobs(f"{bucket}/pairs", f"{bucket}/disturbed")
    happened = store_proxy.faults - before
    assert len(happened) >= 4  # of five kinds, as chance has it
    assert happened.total() > 0.05 * (store_proxy.requests - requests)
    assert attempts_logged(caplog)  # by this process; workers have logs of their own
    assert results(f"{bucket}/disturbed") == results(f"{bucket}/undisturbed")

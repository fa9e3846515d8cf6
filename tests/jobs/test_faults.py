"""All jobs on object storage, where a tenth of all requests are refused, delayed or cut: the results are the same."""

import json
from pathlib import Path

import pytest

from jobs import evaluate, pack, predict, train
from matting.results import ledger
from matting.storage import store
from tests.support import faults
from tests.support.drawing import write_folders
from tests.support.jobs import taken_as_own

pytestmark = pytest.mark.slow(seconds=50)

SMALL = ["--size=32", "--width=4", "--depth=2", "--batch=4", "--epochs=2"]
# Columns of the ledger that differ between runs. The model differs, since a checkpoint contains the URI of its data.
COLUMNS_OF_A_RUN = ("run", "finished_at", "outputs", "model")


def upload(local: Path, uri: str) -> None:
    for path in sorted(local.rglob("*.png")):
        store.write_bytes(f"{uri}/{path.relative_to(local)}", path.read_bytes())


def run_all_jobs(pairs: str, output: str) -> None:
    pack.main([f"--pairs={pairs}", f"--output={output}/packed", "--split-seed=2"])
    with taken_as_own():
        train.main([f"--data={output}/packed", f"--output={output}", "--name=run", *SMALL])
    best = f"--checkpoint={output}/run/best"
    evaluate.main([best, f"--data={output}/packed", f"--output={output}/scores", "--split=all"])
    predict.main([best, f"--images={pairs}/images", f"--output={output}/results"])


def results(output: str) -> dict[str, object]:
    """Return all results that must not depend on the network."""
    etags = {file.key: file.etag for file in store.list_files(output)}
    objects = {key: etag for key, etag in etags.items() if key.startswith(("packed/", "results/alpha"))}
    history = map(json.loads, store.read_bytes(f"{output}/run/metrics.jsonl").splitlines())
    rows = ledger.read(f"{output}/results").drop_columns(COLUMNS_OF_A_RUN).to_pylist()
    return {
        "objects": objects,
        "weights": etags["run/best/model.safetensors"],
        "scores": etags["scores/per_image.parquet"],
        "curve": [(row["step"], row.get("train_loss"), row.get("val_mad")) for row in history],
        "ledger": rows,
        "names": sorted(key for key in etags if not key.startswith(("run/", "results/_ledger"))),
    }


def logged_retries(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "matting.storage.retry"]


@pytest.mark.usefixtures("ray_cluster")
def test_failing_requests_change_no_result(bucket, store_proxy, tmp_path, monkeypatch, caplog):
    write_folders(tmp_path, 12, 40)
    upload(tmp_path, f"{bucket}/pairs")
    run_all_jobs(f"{bucket}/pairs", f"{bucket}/undisturbed")
    assert logged_retries(caplog) == []

    before, requests = store_proxy.faults.copy(), store_proxy.requests
    with monkeypatch.context() as faulty:
        faulty.setattr(store_proxy, "plan", faults.seeded_plan(0.1, seed=0))
        run_all_jobs(f"{bucket}/pairs", f"{bucket}/disturbed")
    happened = store_proxy.faults - before
    assert len(happened) >= 4  # out of five kinds, drawn at random
    assert happened.total() > 0.05 * (store_proxy.requests - requests)
    assert logged_retries(caplog)  # those of this process; workers have their own logs
    assert results(f"{bucket}/disturbed") == results(f"{bucket}/undisturbed")

"""predict on sick machines, and with photos that kill their process: no other photo is lost."""

import math
from collections import Counter
from pathlib import Path

import pytest

from jobs import predict
from jobs.common.cli import JobError
from jobs.prediction import isolation
from jobs.prediction.blocks import BLOCK_PHOTOS
from matting.data import images
from matting.data.photos import find_photos
from matting.nn import checkpoint
from matting.results.pipeline import PredictionSettings
from tests.support import predictions
from tests.support.sickness import CUDA_ERROR, PoisonWork, SickDeviceWork, UnforeseenErrorWork

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def command(trained: str, tmp_path: Path) -> list[str]:
    """Options of a prediction of <tmp_path>/photos into <tmp_path>/out."""
    return [f"--checkpoint={trained}", f"--images={tmp_path}/photos", f"--output={tmp_path}/out", "--precision=fp32"]


def rows(output: Path) -> dict[str, dict]:
    """Ledger rows of a run that was stopped, by key."""
    return predictions.read_ledger(output) if (output / "_ledger").exists() else {}


# Sick machines --------------------------------------------------------------------------------------------------------


def test_broken_device_fails_no_photo(command: list[str], tmp_path: Path) -> None:
    predictions.write_photos(tmp_path / "photos", 1500)
    with pytest.raises(JobError, match=rf"No node is left whose devices work\. CPU of node .*{CUDA_ERROR}"):
        predict.main(command, SickDeviceWork)
    handled = rows(tmp_path / "out")
    assert {row["status"] for row in handled.values()} <= {"done"}
    assert len(handled) < 1500
    predict.main(command)
    predictions.assert_accounted_for(tmp_path / "out", predictions.photo_keys(1500))
    assert {row["status"] for row in predictions.read_ledger(tmp_path / "out").values()} == {"done"}


def test_run_that_fails_photos_is_stopped_early(command: list[str], tmp_path: Path) -> None:
    predictions.write_photos(tmp_path / "photos", 600)
    with pytest.raises(JobError, match=r"of 600 photos, since .* failed.*on CPU of node .*: ValueError: unforeseen"):
        predict.main(command, UnforeseenErrorWork)
    handled = rows(tmp_path / "out")
    assert 60 <= len(handled) < 600
    assert {row["status"] for row in handled.values()} == {"transient"}
    predict.main(command)
    predictions.assert_accounted_for(tmp_path / "out", predictions.photo_keys(600))
    assert {row["status"] for row in predictions.read_ledger(tmp_path / "out").values()} == {"done"}


def test_transient_failures_are_told_from_the_photos_own(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions.write_photos(tmp_path / "photos", 4)
    (tmp_path / "photos/bad.jpg").write_bytes(b"")
    (tmp_path / "out/alpha/img_align_celeba/000002.jpg.png").mkdir(parents=True)
    with pytest.raises(JobError, match=r"2 of 5 photos failed, more than --max-failed 0\.2 allows"):
        predict.main([*command, "--max-failed=0.2"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 done 0 skipped, handled before 1 failed 1 empty file 1 failed for a transient reason" in printed
    assert "transient" in (tmp_path / "out/report.html").read_text()
    (tmp_path / "out/alpha/img_align_celeba/000002.jpg.png").rmdir()
    predict.main([*command, "--max-failed=0"])
    statuses = Counter(row["status"] for row in predictions.read_ledger(tmp_path / "out").values())
    assert statuses == {"done": 4, "failed": 1}


# Poison ---------------------------------------------------------------------------------------------------------------


def poison(folder: Path, number: int, what: str) -> str:
    """Write a photo that PoisonWork dies of. Returns its key."""
    key = f"img_align_celeba/{number:06d}.jpg"
    (folder / key).write_bytes(predictions.draw_photo(1) + b"\0" + what.encode())
    return key


@pytest.mark.parametrize(
    ("what", "reason", "sink"),
    [
        ("SIGSEGV", "killed its process: SIGSEGV", "files"),
        ("SIGKILL", "killed its process: SIGKILL", "table"),
        ("HANG", "took more than 3 s", "files"),
    ],
)
def test_photo_that_kills_its_process_costs_one_photo(
    command: list[str], tmp_path: Path, what: str, reason: str, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = images.decode_image

    def decode_harmless(data: bytes) -> images.Pixels:
        assert not data.endswith(what.encode()), "the driver decodes the photo for its page, and would die of it"
        return decode(data)

    monkeypatch.setattr(images, "decode_image", decode_harmless)
    predictions.write_photos(tmp_path / "photos", 400)
    key = poison(tmp_path / "photos", 300, what)
    predict.main([*command, f"--sink={sink}", "--photo-timeout=3"], PoisonWork)
    found = predictions.read_ledger(tmp_path / "out")
    assert {name: row["error"] for name, row in found.items() if row["status"] != "done"} == {key: reason}
    assert len(found) == 400
    assert found[key]["status"] == "failed"
    assert len((tmp_path / "out.deaths").read_bytes()) <= math.log2(BLOCK_PHOTOS) + 2
    if sink == "files":
        predictions.assert_accounted_for(tmp_path / "out", predictions.photo_keys(400))


def test_photo_that_needs_too_much_memory_is_failed(trained: str, tmp_path: Path) -> None:
    predictions.write_photos(tmp_path / "photos", 4)
    key = poison(tmp_path / "photos", 2, "MEMORY")
    settings = PredictionSettings(write=("alpha",), format="png", refine="none", sink="files", precision="fp32")
    work = PoisonWork(trained, checkpoint.load(trained).identity, f"{tmp_path}/out", settings, "run")
    block = find_photos(f"{tmp_path}/photos").table
    found, seconds = isolation.handle(work, block, 0, 60, None, max_memory=1_000_000_000)
    reasons = {row["key"]: row["error"] for row in found}
    assert reasons.pop(key) == "needed more than 1,000 MB of memory"
    assert list(reasons.values()) == [None] * 3
    assert seconds["network"] > 0
    found, _ = isolation.handle(work, block, 0, 60, None, max_memory=1_000_000)
    assert {row["status"] for row in found} == {"transient"}

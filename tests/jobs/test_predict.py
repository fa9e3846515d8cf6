"""predict: every photo of a collection is accounted for, whatever earlier runs have left."""

import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

from jobs import predict
from jobs.common.cli import CANNOT_BEGIN, JobError
from jobs.common.cluster import ClusterError
from jobs.prediction.precision import formats_here
from matting.inference.predictor import Predictor
from matting.nn import checkpoint
from matting.results import outputs
from tests.support import jobs
from tests.support.predictions import (
    assert_accounted_for,
    draw_photo,
    new_checkpoint,
    photo_keys,
    read_ledger,
    write_photos,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")
slow = pytest.mark.slow

Printed = Callable[[], str]


def run_predict(trained: str, source: object, output: object, *options: str) -> None:
    predict.main([f"--checkpoint={trained}", f"--images={source}", f"--output={output}", *options])


OWN_LINES = (
    r"3 photos in /",
    r"3 (new|left to do|done)$",
    r"0 (skipped, handled before|failed)$",
    r"Time went to ",
    r"\d.* photos/s for .* Page: /",
    r"predicting: \d of 3 photos",  # where the machine is slow
)


@slow
def test_few_photos_print_the_jobs_own_lines_only(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    options = [f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'out'}"]
    code, output = jobs.run("predict", *options)
    assert code == 0, output
    strange = [line for line in output.splitlines() if not any(re.match(rf" *{own}", line) for own in OWN_LINES)]
    assert strange == []


# What is due ----------------------------------------------------------------------------------------------------------


def test_folder_is_predicted_once(trained: str, tmp_path: Path, printed: Printed) -> None:
    write_photos(tmp_path / "photos", 30)
    (tmp_path / "photos/readme.txt").write_text("not a photo")
    output = tmp_path / "out"
    run_predict(trained, tmp_path / "photos", output, "--write=alpha,cutout")
    output_text = printed()
    assert "30 photos in" in output_text
    assert "(1 other files: readme.txt)" in output_text
    assert "30 done 0 skipped, handled before 0 failed" in output_text
    assert "s of start-up" in output_text
    assert_accounted_for(output, photo_keys(30))
    predictor = Predictor.load(trained)
    for key in photo_keys(30):
        expected = predictor(Image.open(tmp_path / "photos" / key))  # one photo at a time
        np.testing.assert_array_equal(np.array(Image.open(output / f"alpha/{key}.png")), np.array(expected))
    page = (output / "report.html").read_text()
    assert "img_align_celeba/000001.jpg" in page

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    run_predict(trained, tmp_path / "photos", output, "--write=cutout,alpha")
    output_text = printed()
    assert "30 done 0 left to do" in output_text
    assert "Nothing left to do." in output_text
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before

    (output / "report.html").unlink()  # as if the run had been killed at its end
    run_predict(trained, tmp_path / "photos", output, "--write=alpha,cutout")
    assert "Nothing left to do." in printed()
    assert "img_align_celeba/000001.jpg" in (output / "report.html").read_text()


def test_summary_has_counts_and_times(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)
    output = tmp_path / "out"
    run_predict(trained, tmp_path / "photos", output, "--limit=3")
    (tmp_path / "photos/bad.jpg").write_bytes(b"")
    run_predict(trained, tmp_path / "photos", output, "--max-failed=1", "--precision=fp32", "--limit=3")
    summary = json.loads((output / "summary.json").read_text())
    rows = [row for row in read_ledger(output).values() if row["run"] == summary["run"]]
    assert (summary["photos"], summary["done"], summary["failed"], summary["skipped"]) == (5, 2, 1, 2)
    assert len(rows) == 3
    assert summary["failures"] == {"empty file": 1}
    assert summary["checkpoint"] == trained
    assert summary["model"] == checkpoint.load(trained).identity
    assert summary["settings"]["precision"] == "fp32"
    assert {row["settings"] for row in rows} == {json.dumps(summary["settings"], sort_keys=True)}
    assert summary["photos_per_second"] == pytest.approx(3 / summary["seconds"], rel=0.01)
    assert summary["ray_start_seconds"] >= 0
    assert sum(summary["stage_seconds"].values()) > 0
    assert summary["command"].startswith("python ")


@slow
@pytest.mark.parametrize("sink", ["files", "table"])
def test_page_names_missing_matte(trained: str, tmp_path: Path, sink: str) -> None:
    write_photos(tmp_path / "photos", 3)
    output, lost = tmp_path / "out", "img_align_celeba/000002.jpg"
    command = [f"--checkpoint={trained}", f"--images={tmp_path}/photos", f"--output={output}", f"--sink={sink}"]
    assert jobs.run("predict", *command)[0] == 0  # in a process of its own, since this one would keep the table
    (output / "report.html").unlink()  # as if the run had been killed before it
    if sink == "files":
        (output / f"alpha/{lost}.png").write_bytes(b"")
    else:
        outputs.remove(str(output), {lost: read_ledger(output)[lost]["outputs"]})
    predict.main(command)
    page = (output / "report.html").read_text()
    assert page.count("made, and gone since: ") == 1
    assert page.count('alt="alpha of') == 2


@slow
def test_only_new_and_changed_photos_are_handled(trained: str, tmp_path: Path, printed: Printed) -> None:
    folder, output = tmp_path / "photos", tmp_path / "out"
    write_photos(folder, 30)
    run_predict(trained, folder, output)
    first = read_ledger(output)
    write_photos(folder, 10, start=30)
    name = "img_align_celeba/{:06d}.jpg".format
    for number in (3, 14, 15):
        (folder / name(number)).write_bytes(draw_photo(number + 1, 60, 40))
    (folder / name(9)).write_bytes(draw_photo(8)[:-200])
    (folder / name(26)).write_bytes(b"")
    printed()
    run_predict(trained, folder, output, "--plan")
    assert read_ledger(output) == first
    output_text = printed()
    assert "40 photos in" in output_text
    assert "10 new 5 changed since they were predicted 25 done 15 left to do, about" in output_text
    run_predict(trained, folder, output, "--max-failed=0.2")
    assert "13 done 25 skipped, handled before 2 failed 1 truncated JPEG 1 empty file" in printed()
    second = read_ledger(output)
    assert {key for key, row in second.items() if row != first.get(key)} == {
        *(name(number) for number in (3, 9, 14, 15, 26)),
        *(name(number) for number in range(31, 41)),
    }
    assert_accounted_for(output, photo_keys(40))  # the broken photos' earlier mattes are gone

    run_predict(trained, folder, output)
    assert "Nothing left to do." in printed()
    run_predict(trained, folder, output, "--plan", "--retry-failed")
    assert "2 left to do" in printed()

    other = new_checkpoint(tmp_path / "other", seed=1)
    run_predict(other, folder, output, "--max-failed=0.2")
    assert "40 made with another checkpoint or other settings 40 left to do" in printed()
    assert {row["model"] for row in read_ledger(output).values()} == {checkpoint.load(other).identity}
    run_predict(other, folder, output, "--refine=none", "--limit=7", "--plan")
    assert "40 left to do, of which 7 in this run" in printed()


@slow
def test_another_precision_makes_every_photo_due(trained: str, tmp_path: Path, printed: Printed) -> None:
    write_photos(tmp_path / "photos", 3)
    run_predict(trained, tmp_path / "photos", tmp_path / "out", "--precision=fp32")
    printed()
    run_predict(trained, tmp_path / "photos", tmp_path / "out", "--plan", "--precision=fp32")
    assert "3 done 0 left to do" in printed()
    run_predict(trained, tmp_path / "photos", tmp_path / "out", "--plan", "--precision=bf16")
    assert "3 made with another checkpoint or other settings 3 left to do" in printed()
    run_predict(trained, tmp_path / "photos", tmp_path / "auto")
    for row in read_ledger(tmp_path / "auto").values():
        assert json.loads(row["settings"])["precision"] == formats_here()[0]


@slow
def test_too_many_failures_fail_the_job(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 9)
    (tmp_path / "photos/bad.jpg").write_bytes(b"GIF8")
    with pytest.raises(JobError, match=r"1 of 10 photos failed.*bad\.jpg: not an image"):
        run_predict(trained, tmp_path / "photos", tmp_path / "out", "--max-failed=0.09")
    assert len(read_ledger(tmp_path / "out")) == 10
    (tmp_path / "photos/bad.jpg").write_bytes(draw_photo(1))
    run_predict(trained, tmp_path / "photos", tmp_path / "out", "--max-failed=0")
    assert {row["status"] for row in read_ledger(tmp_path / "out").values()} == {"done"}


@slow
@pytest.mark.parametrize("sink", ["files", "table"])
def test_deleted_photo_stays_until_pruned(trained: str, tmp_path: Path, printed: Printed, sink: str) -> None:
    folder, output = tmp_path / "photos", tmp_path / "out"
    write_photos(folder, 12)
    run_predict(trained, folder, output, f"--sink={sink}")
    gone = "img_align_celeba/000004.jpg"
    (folder / gone).unlink()
    run_predict(trained, folder, output, f"--sink={sink}")
    assert "1 deleted from the collection; their outputs stay" in printed()
    assert gone in read_ledger(output)
    run_predict(trained, folder, output, f"--sink={sink}", "--prune")
    assert "1 deleted from the collection; their outputs are removed" in printed()
    assert read_ledger(output).keys() == photo_keys(12) - {gone}
    if sink == "files":
        assert not (output / f"alpha/{gone}.png").exists()
        assert_accounted_for(output, set(read_ledger(output)))
    else:
        mattes = duckdb.sql(f"select key, alpha from '{output}/mattes/*.parquet'").fetchall()
        assert {key for key, _ in mattes} == read_ledger(output).keys()
        for _, alpha in mattes:
            assert Image.open(io.BytesIO(alpha)).size == (44, 54)


@slow
def test_prune_refuses_to_remove_much(trained: str, tmp_path: Path) -> None:
    folder, output = tmp_path / "photos", tmp_path / "out"
    write_photos(folder, 12)
    run_predict(trained, folder, output)
    for number in (1, 2):
        (folder / f"img_align_celeba/{number:06d}.jpg").unlink()
    with pytest.raises(CANNOT_BEGIN, match=r"outputs of 2 of the ledger's 12 photos.*nothing was removed.*000001.jpg"):
        run_predict(trained, folder, output, "--prune")
    assert_accounted_for(output, photo_keys(12))
    run_predict(trained, folder, output, "--prune", "--max-pruned=0.2")
    assert len(read_ledger(output)) == 10


@slow
def test_limit_leaves_the_rest_to_later_runs(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 25)
    for count in (10, 20, 25):
        run_predict(trained, tmp_path / "photos", tmp_path / "out", "--limit=10")
        assert len(read_ledger(tmp_path / "out")) == count


@slow
def test_two_runs_at_once_do_no_harm(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 150)
    run_predict(trained, tmp_path / "photos", tmp_path / "alone")
    command = [f"--checkpoint={trained}", f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'both'}"]
    with jobs.running("predict", *command) as process:
        while process.poll() is None and not list((tmp_path / "both").rglob("*.png")):
            time.sleep(0.05)  # until it has begun to write
        run_predict(trained, tmp_path / "photos", tmp_path / "both")
        output_text, _ = process.communicate()
    assert process.returncode == 0, output_text
    assert_accounted_for(tmp_path / "both", set(read_ledger(tmp_path / "alone")))
    for path in (tmp_path / "alone/alpha").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "both/alpha" / path.relative_to(tmp_path / "alone/alpha")).read_bytes()


# Errors ---------------------------------------------------------------------------------------------------------------


def test_too_small_cluster_is_refused(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    with pytest.raises(ClusterError, match="need 64 CPUs"):
        run_predict(trained, tmp_path / "photos", tmp_path / "out", "--workers=64")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.*"))


def test_wrong_options_are_refused(trained: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([f"--checkpoint={tmp_path}", f"--images={tmp_path}", f"--output={tmp_path}/out"], "not a whole checkpoint"),
        ([f"--checkpoint={trained}", f"--images={tmp_path}/empty", f"--output={tmp_path}/out"], "holds no files"),
        ([f"--checkpoint={trained}", f"--images={trained}", f"--output={tmp_path}/out"], "no photo"),
        (["--write=mask", f"--checkpoint={trained}", "--images=x", "--output=y"], "--write takes alpha"),
    ):
        with pytest.raises(CANNOT_BEGIN, match=words) as caught:
            predict.main(arguments)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["empty"]  # noqa: PTH208 - names


def test_wrong_options_exit_with_code_2(trained: str) -> None:
    code, output = jobs.run_here("predict", "--write=mask", f"--checkpoint={trained}", "--images=x", "--output=y")
    assert code == 2
    assert "--write takes alpha" in output
    assert len(output.splitlines()) == 1


@slow
def test_store_that_fails_at_the_end_costs_no_matte(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "out/report.html").mkdir(parents=True)  # a folder in the place of the page
    code, output = jobs.run_here(
        "predict", f"--checkpoint={trained}", f"--images={tmp_path}/photos", f"--output={tmp_path}/out"
    )
    assert code == 1
    assert "failed: Cannot write" in output
    assert {row["status"] for row in read_ledger(tmp_path / "out").values()} == {"done"}


@slow
def test_unwritable_ledger_stops_the_run(trained: str, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/_ledger").symlink_to(tmp_path / "nowhere/ledger")  # reads as empty, and cannot be written to
    uris = [f"--checkpoint={trained}", f"--images={tmp_path}/photos", f"--output={tmp_path}/out"]
    with pytest.raises(JobError, match=r"stopped after 0 of 3 photos.*Cannot write .*_ledger") as raised:
        predict.main(uris)
    assert "\n" not in str(raised.value)
    (tmp_path / "out/_ledger").unlink()
    predict.main(uris)
    assert {row["status"] for row in read_ledger(tmp_path / "out").values()} == {"done"}

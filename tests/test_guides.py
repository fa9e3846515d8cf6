"""The commands of README.md and jobs/README.md, run one after another as a reader would, on small drawn data.

`s3://` URIs are buckets of a local object store. All jobs run in this process, on one local cluster. Trainings get
fewer steps and a smaller network, whose mattes may have any confidence; nothing else of a command is changed. Not run
here: commands that install, submit to a cluster (tests/jobs/test_submit.py), build images, or measure the machine
(tests/jobs/test_benchmark.py).
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from matting.data import images
from matting.data.synthetic import draw_person
from matting.storage import store
from tests.support import jobs
from tests.support.drawing import write_folders
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow(seconds=50)

GUIDES = (ROOT / "README.md", ROOT / "jobs/README.md")
NOT_RUN = ("benchmark.py", "ray job submit", "pip install", "git ")
SMALL = ["--recipe=quickstart", "--size=32", "--width=4", "--depth=2", "--epochs=1", "--synthetic-pairs=60"]


def commands(guide: Path) -> list[str]:
    """Return the command lines in the guide's bash blocks, in order, without those of NOT_RUN."""
    blocks = re.findall(r"```bash\n(.*?)```", guide.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.partition("   #")[0] for line in lines if not any(word in line for word in NOT_RUN)]


def run_line(line: str) -> tuple[int, str]:
    """Run a command, with a small training if it is one. Returns its exit code and its output."""
    program, *words = shlex.split(line)
    if program == "matting":
        command = [sys.executable, "-m", "matting", *words]
        ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        return ran.returncode, ran.stdout + ran.stderr
    assert program.removeprefix(".venv/bin/") == "python", line
    job = words.pop(0).removeprefix("jobs/").removesuffix(".py")
    words = ["0" if before == "--min-confidence" else word for before, word in zip(["", *words], words, strict=False)]
    if "--photos" in words or job == "train":
        words += ["--check-mattes", "warn"]  # the mattes of a network that has hardly trained are one grey
    if job == "train":
        words += SMALL
    return jobs.run_here(job, *words)


@pytest.fixture
def readers_folder(object_store: str, tmp_path: Path) -> Path:
    """A folder and buckets with what the guides' commands read."""
    client = boto3.session.Session().client("s3", endpoint_url=object_store)
    for bucket in ("bucket", "photos", "mattes"):
        client.create_bucket(Bucket=bucket)
    write_folders(tmp_path / "aisegment", 60, 48)
    for file in store.list_files(str(tmp_path / "aisegment")):
        for folder in ("aisegment", "mine"):
            store.write_bytes(f"s3://bucket/{folder}/{file.key}", (tmp_path / "aisegment" / file.key).read_bytes())
    for number in range(3):
        photo = images.encode_jpeg(draw_person(1, number, 64, 80)[0])
        for folder in ("celeba", "img_align_celeba", "faces"):
            store.write_bytes(f"s3://photos/{folder}/{number}.jpg", photo)
    (tmp_path / "photo.jpg").write_bytes(photo)
    return tmp_path


@pytest.mark.usefixtures("own_cluster")
def test_commands_of_the_guides_run_in_order(readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(readers_folder)
    code, said = jobs.run_here("train", *SMALL, "--name=first")
    assert code == 0, said
    # The mattes of some other system, and a packed dataset, which the guides take as given.
    for key in [file.key for file in store.list_files("s3://bucket/aisegment/mattes")]:
        matte = store.read_bytes(f"s3://bucket/aisegment/mattes/{key}")
        store.write_bytes(str(readers_folder / "their-mattes/images" / key), matte)
    lines = dict.fromkeys(line for guide in GUIDES for line in commands(guide))
    for line in lines:
        code, said = run_line(line)
        assert code == 0, f"{line}\n{said}"
    assert len(lines) >= 10

"""Jobs on a cluster whose second node does not see the driver's files: refused before any work, naming the place."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from jobs.common import visibility
from jobs.common.visibility import InvisiblePathError, Token, describe_input, invisible_path, require_visible
from tests.support import jobs
from tests.support.clusters import ENVIRONMENT, HEAD, apart_from, can_mount
from tests.support.predictions import new_checkpoint, write_photos

needs_mounts = pytest.mark.skipif(not can_mount(), reason="a mount namespace needs the rights of root")


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visibility, "PATIENCE_SECONDS", 0.0)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Cluster of a head without cores. Jobs that the test starts join it."""
    with pytest.MonkeyPatch.context() as changed:
        for name, value in ENVIRONMENT.items():
            changed.setenv(name, value)
        found = Cluster(initialize_head=True, head_node_args=HEAD)
        changed.setenv("RAY_ADDRESS", found.address)
        yield found
        found.shutdown()


def assert_refused(code: int, said: str, path: Path) -> None:
    assert code == 2, said
    assert f"does not see {path} as the driver does" in said
    assert "error: node " in said
    assert "URIs of object storage" in said
    assert "Traceback" not in said


@pytest.mark.slow(seconds=40)
@needs_mounts
def test_outputs_and_inputs_that_a_node_does_not_see_are_refused(tmp_path: Path, cluster: Cluster) -> None:
    hidden, seen = tmp_path / "hidden", tmp_path / "seen"
    trained = new_checkpoint(seen / "trained", seed=0)
    for folder in (hidden, seen):
        write_photos(folder / "photos", 4)
    small = ["--width=4", "--size=32", "--synthetic-pairs=40", "--epochs=1", "--name=run"]
    predict = ["predict", f"--checkpoint={trained}", "--precision=fp32"]
    with apart_from(hidden, cluster):
        *refused, (code, said) = jobs.run_joined(
            ["train", *small, f"--output={hidden / 'runs'}"],
            [*predict, f"--images={seen / 'photos'}", f"--output={hidden / 'out'}"],
            [*predict, f"--images={hidden / 'photos'}", f"--output={seen / 'refused'}"],
            [*predict, f"--images={seen / 'photos'}", f"--output={seen / 'out'}"],
        )
    for result, path in zip(refused, (hidden / "runs", hidden / "out", hidden / "photos"), strict=True):
        assert_refused(*result, path)
    for output in (hidden / "out", seen / "refused"):
        assert not list(output.glob(".*.partial"))
        assert not (output / "_ledger").exists()
    assert code == 0, said


@pytest.mark.usefixtures("no_patience")
def test_late_process_sees_the_same_files_or_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"photo")
    (tmp_path / "file").touch()
    inputs = ((str(tmp_path / "photos"), describe_input(tmp_path / "photos", "")),)
    token = Token(str(tmp_path / "out"), str(tmp_path / "file"), inputs)
    assert invisible_path(token) == ""
    (tmp_path / "photos/new.jpg").touch()  # a collection may grow
    require_visible(token)
    (tmp_path / "photos/a.jpg").write_bytes(b"another")  # and a photo may be replaced
    assert invisible_path(token) == ""
    (tmp_path / "photos/b.jpg").unlink()
    assert invisible_path(token) == str(tmp_path / "photos")
    (tmp_path / "file").unlink()
    assert invisible_path(token) == str(tmp_path / "out")
    with pytest.raises(InvisiblePathError, match=r"node .* does not see /missing as the driver does"):
        require_visible(Token("", "", (("/missing", (("a", 1, 1),)),)))


def test_outputs_among_the_inputs_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("a.jpg", "out/b.png", ".hidden"):
        (tmp_path / name).touch()
    assert [name for name, _, _ in describe_input(tmp_path, str(tmp_path / "out"))] == ["a.jpg"]
    assert [name for name, _, _ in describe_input(tmp_path / "a.jpg", "")] == ["."]


def test_files_of_an_object_store_need_no_proof() -> None:
    with visibility.prove(False, "s3://bucket/out", ["s3://bucket/photos"]) as token:
        assert token is None
        require_visible(token)

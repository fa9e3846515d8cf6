"""checkpoint: folders are read as they were written; anything else is refused, and no code in it runs."""

import hashlib
import json
import math
import pickle
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from matting.nn import checkpoint
from matting.nn.checkpoint import CheckpointError
from matting.nn.unet import UNet, UNetConfig
from matting.storage.errors import NotFoundError
from tests.support.pickles import Payload

SIZE = 32
METRICS = {"mad": 1.5, "iou": 0.75}


def trained(width: int = 2) -> UNet:
    """Return a network whose BatchNorms have statistics."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=width, relu="block"))
    model(torch.rand(4, 3, SIZE, SIZE))
    return model


def save(uri: str, model: UNet, train_state: dict[str, Any] | None = None) -> None:
    config = checkpoint.describe(model, SIZE, recipe={"name": "baseline"}, data={"fingerprint": "f00"})
    checkpoint.save(uri, model, config, METRICS, train_state)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder."""
    save(str(tmp_path / "best"), trained(), {"epochs_done": 1})
    return tmp_path / "best"


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def check_round_trip(uri: str) -> None:
    model = trained()
    save(uri, model)
    loaded = checkpoint.load(uri)
    assert loaded.size == SIZE
    assert loaded.metrics == METRICS
    assert loaded.config["recipe"] == {"name": "baseline"}
    assert loaded.config["data"] == {"fingerprint": "f00"}
    assert loaded.model.config == model.config
    assert not loaded.model.training
    image = torch.rand(1, 3, SIZE, SIZE)
    assert torch.equal(loaded.model(image), model.eval()(image))


def test_round_trip_through_a_folder(tmp_path: Path) -> None:
    check_round_trip(str(tmp_path / "runs" / "best"))


def test_round_trip_through_a_bucket(bucket: str) -> None:
    check_round_trip(f"{bucket}/runs/best")


def test_identity_is_the_hash_of_config_and_weights(folder: Path) -> None:
    content = (folder / "config.json").read_bytes() + (folder / "model.safetensors").read_bytes()
    assert checkpoint.load(str(folder)).identity == hashlib.sha256(content).hexdigest()


def test_identity_changes_with_weights_and_config_only(folder: Path, tmp_path: Path) -> None:
    original = checkpoint.load(str(folder))
    save(str(tmp_path / "same"), original.model, {"epochs_done": 2})
    assert checkpoint.load(str(tmp_path / "same")).identity == original.identity
    with torch.no_grad():
        original.model.head[2].weight[0, 0, 0, 0] += 1
    save(str(tmp_path / "weight"), original.model)
    change_config(folder, recipe={"name": "other"})
    identities = {checkpoint.load(str(place)).identity for place in (folder, tmp_path / "weight")}
    assert len({original.identity, *identities}) == 3


def test_aspect_ratios_come_from_the_config(folder: Path) -> None:
    assert checkpoint.load(str(folder)).aspects is None
    change_config(folder, data={"aspects": [0.75, 1]})
    assert checkpoint.load(str(folder)).aspects == (0.75, 1.0)


@pytest.mark.parametrize("aspects", [[1], [1.5, 0.75], [0, 1], ["wide", 2], 7])
def test_impossible_aspect_ratios_are_refused(folder: Path, aspects: Any) -> None:
    change_config(folder, data={"aspects": aspects})
    with pytest.raises(CheckpointError, match=r"damaged or not ours"):
        checkpoint.load(str(folder))
    change_config(folder, data=[aspects])
    with pytest.raises(CheckpointError, match=r"damaged or not ours"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"not a whole checkpoint folder: {name} missing"):
        checkpoint.load(str(folder))


def test_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json, model.safetensors, metrics.json missing"):
        checkpoint.load(str(tmp_path))


@pytest.mark.parametrize(
    "model",
    [
        {"width": 3, "depth": 3, "relu": "block"},  # weights of another shape
        {"width": 2, "depth": 2, "relu": "block"},  # too many weights
        {"width": 0, "depth": 3, "relu": "block"},  # impossible
        {"width": 2, "color": "red"},  # unknown option
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, model: dict[str, Any]) -> None:
    change_config(folder, model=model)
    with pytest.raises(CheckpointError, match="do not describe one network"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.json"])
def test_damaged_file_is_refused(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for damaged in (b"", data[: len(data) // 2], b"\xff" + data[1:]):
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(str(folder))


@pytest.mark.parametrize("number", [1, 3])
def test_other_formats_are_refused(folder: Path, number: int) -> None:
    change_config(folder, format=number)
    with pytest.raises(CheckpointError, match=rf"has checkpoint format {number}; .* reads format 2 only. Train again"):
        checkpoint.load(str(folder))


def test_config_has_the_option_names(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 2
    assert set(config["model"]) == {"width", "depth", "relu", "max_width", "skip", "unshuffle", "alpha_clip"}


# The training state -------------------------------------------------------------------------------------------------


def test_round_trip_of_the_train_state(tmp_path: Path) -> None:
    model = trained()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 3, SIZE, SIZE)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "epochs_done": 3, "seconds": 1.5, "best_mad": math.inf}
    save(str(tmp_path), model, state)
    loaded = checkpoint.load_train_state(str(tmp_path))
    assert {name: loaded[name] for name in ("epochs_done", "seconds", "best_mad")} == {
        "epochs_done": 3,
        "seconds": 1.5,
        "best_mad": math.inf,
    }
    assert loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    for number, moments in state["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(loaded["optimizer"]["state"][number][name], tensor)


def test_train_state_is_optional(tmp_path: Path) -> None:
    save(str(tmp_path), trained())
    checkpoint.load(str(tmp_path))
    with pytest.raises(NotFoundError, match=r"train_state\.pt"):
        checkpoint.load_train_state(str(tmp_path))


def test_code_in_a_train_state_does_not_run(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    torch.save({"optimizer": Payload(target)}, folder / "train_state.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        checkpoint.load_train_state(str(folder))
    assert not target.exists()
    torch.load(folder / "train_state.pt", weights_only=False)
    assert target.exists()  # the payload works where objects are unpickled


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize("content", [{"epochs_done": Point(1, 2)}, {"model": torch.nn.Linear(1, 1)}])
def test_object_in_a_train_state_is_refused(folder: Path, content: dict[str, Any]) -> None:
    torch.save(content, folder / "train_state.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        checkpoint.load_train_state(str(folder))


def test_damaged_train_state_is_refused(folder: Path) -> None:
    data = (folder / "train_state.pt").read_bytes()
    pickled = data.index(b"epochs_done")
    not_utf8 = data[:pickled] + b"\xff" + data[pickled + 1 :]
    for damaged in (b"", data[: len(data) // 2], not_utf8, b"hello world", pickle.dumps([])):
        (folder / "train_state.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"train_state\.pt is damaged"):
            checkpoint.load_train_state(str(folder))

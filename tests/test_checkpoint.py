"""checkpoint: what is saved comes back, and what is not a checkpoint is told so, and never run."""

import hashlib
import json
import math
import pickle
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from matting import checkpoint, storage
from matting.checkpoint import CheckpointError
from matting.unet import UNet, UNetConfig

SIZE = 32
METRICS = {"mad": 1.5, "iou": 0.75}


def trained(width: int = 2) -> UNet:
    """A network whose BatchNorms have seen something."""
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=width, relu="block"))
    model(torch.rand(4, 3, SIZE, SIZE))
    return model


def save(uri: str, model: UNet, train_state: dict[str, Any] | None = None) -> None:
    config = checkpoint.describe(model, SIZE, recipe={"name": "seed"}, data={"fingerprint": "f00"})
    checkpoint.save(uri, model, config, METRICS, train_state)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint folder."""
    save(str(tmp_path / "best"), trained(), {"epochs": 1})
    return tmp_path / "best"


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def check_comes_back(uri: str) -> None:
    model = trained()
    save(uri, model)
    loaded = checkpoint.load(uri)
    assert loaded.size == SIZE
    assert loaded.metrics == METRICS
    assert loaded.config["recipe"] == {"name": "seed"}
    assert loaded.config["data"] == {"fingerprint": "f00"}
    assert loaded.model.config == model.config
    assert not loaded.model.training
    image = torch.rand(1, 3, SIZE, SIZE)
    assert torch.equal(loaded.model(image), model.eval()(image))


def test_comes_back_from_a_folder(tmp_path: Path) -> None:
    check_comes_back(str(tmp_path / "runs" / "best"))


def test_comes_back_from_a_bucket(bucket: str) -> None:
    check_comes_back(f"{bucket}/runs/best")


def test_identity_is_the_hash_of_config_and_weights(folder: Path) -> None:
    content = (folder / "config.json").read_bytes() + (folder / "model.safetensors").read_bytes()
    assert checkpoint.load(str(folder)).identity == hashlib.sha256(content).hexdigest()


def test_identity_changes_with_a_weight_and_with_the_config_only(folder: Path, tmp_path: Path) -> None:
    original = checkpoint.load(str(folder))
    save(str(tmp_path / "same"), original.model, {"epochs": 2})
    assert checkpoint.load(str(tmp_path / "same")).identity == original.identity
    with torch.no_grad():
        original.model.head[2].weight[0, 0, 0, 0] += 1
    save(str(tmp_path / "weight"), original.model)
    change_config(folder, recipe={"name": "other"})
    identities = {checkpoint.load(str(place)).identity for place in (folder, tmp_path / "weight")}
    assert len({original.identity, *identities}) == 3


def test_the_shapes_of_its_photos_are_those_of_its_config_or_unknown(folder: Path) -> None:
    assert checkpoint.load(str(folder)).aspects is None
    change_config(folder, data={"aspects": [0.75, 1]})
    assert checkpoint.load(str(folder)).aspects == (0.75, 1.0)


@pytest.mark.parametrize("aspects", [[1], [1.5, 0.75], [0, 1], ["wide", 2], 7])
def test_shapes_that_are_none(folder: Path, aspects: Any) -> None:
    change_config(folder, data={"aspects": aspects})
    with pytest.raises(CheckpointError, match=r"damaged or not ours"):
        checkpoint.load(str(folder))
    change_config(folder, data=[aspects])
    with pytest.raises(CheckpointError, match=r"damaged or not ours"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"not a whole checkpoint folder: {name} missing"):
        checkpoint.load(str(folder))


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json, model.safetensors, metrics.json missing"):
        checkpoint.load(str(tmp_path))


@pytest.mark.parametrize(
    "model",
    [
        {"width": 3, "depth": 3, "relu": "block"},  # weights of another shape
        {"width": 2, "depth": 2, "relu": "block"},  # too many weights
        {"width": 0, "depth": 3, "relu": "block"},  # impossible
        {"width": 2, "colour": "red"},  # not our options
    ],
)
def test_weights_that_do_not_fit_the_config(folder: Path, model: dict[str, Any]) -> None:
    change_config(folder, model=model)
    with pytest.raises(CheckpointError, match="do not describe one network"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "metrics.json"])
def test_a_damaged_file(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for damaged in (b"", data[: len(data) // 2], b"\xff" + data[1:]):
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(str(folder))


def test_another_format(folder: Path) -> None:
    change_config(folder, format=checkpoint.FORMAT + 1)
    with pytest.raises(CheckpointError, match=r"has checkpoint format 2; this version reads 1"):
        checkpoint.load(str(folder))


# The training state -------------------------------------------------------------------------------------------------


def test_train_state_comes_back(tmp_path: Path) -> None:
    model = trained()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 3, SIZE, SIZE)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "epochs": 3, "seconds": 1.5, "best_mad": math.inf}
    save(str(tmp_path), model, state)
    loaded = checkpoint.load_train_state(str(tmp_path))
    assert {name: loaded[name] for name in ("epochs", "seconds", "best_mad")} == {
        "epochs": 3,
        "seconds": 1.5,
        "best_mad": math.inf,
    }
    assert loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    for number, moments in state["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(loaded["optimizer"]["state"][number][name], tensor)


def test_a_checkpoint_needs_no_train_state(tmp_path: Path) -> None:
    save(str(tmp_path), trained())
    checkpoint.load(str(tmp_path))
    with pytest.raises(storage.NotFoundError, match=r"train_state\.pt"):
        checkpoint.load_train_state(str(tmp_path))


class Payload:
    """Whoever unpickles it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_code_in_a_train_state_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "executed"
    torch.save({"optimizer": Payload(target)}, folder / "train_state.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        checkpoint.load_train_state(str(folder))
    assert not target.exists()
    torch.load(folder / "train_state.pt", weights_only=False)
    assert target.exists()  # so the payload was live


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize("content", [{"epochs": Point(1, 2)}, {"model": torch.nn.Linear(1, 1)}])
def test_an_object_in_a_train_state_is_refused(folder: Path, content: dict[str, Any]) -> None:
    torch.save(content, folder / "train_state.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        checkpoint.load_train_state(str(folder))


def test_a_damaged_train_state(folder: Path) -> None:
    data = (folder / "train_state.pt").read_bytes()
    pickled = data.index(b"epochs")
    not_utf8 = data[:pickled] + b"\xff" + data[pickled + 1 :]
    for damaged in (b"", data[: len(data) // 2], not_utf8, b"hello world", pickle.dumps([])):
        (folder / "train_state.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"train_state\.pt is damaged"):
            checkpoint.load_train_state(str(folder))

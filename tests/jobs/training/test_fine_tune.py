"""Fine-tuning: what --init takes over and refuses, and what the run leaves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import train
from jobs.common import config
from jobs.common.cli import JobError
from jobs.common.config import ConfigError
from jobs.training.config import TrainConfig, presets
from jobs.training.fine_tune import differing_layers, expected_weights, load_start
from matting.data import images
from matting.nn import checkpoint
from matting.nn.checkpoint import CheckpointError
from matting.nn.steps import NonFiniteLoss
from matting.nn.trainer import Epoch, Trainer
from matting.nn.unet import UNet, UNetConfig
from matting.storage import store
from tests.support.drawing import write_folders
from tests.support.jobs import taken_as_own
from tests.support.training import SIZE

slow = pytest.mark.slow


def parse(*argv: str) -> TrainConfig:
    return config.parse(TrainConfig, argv, presets)


@pytest.fixture
def start(tmp_path: Path) -> str:
    """Checkpoint of an untrained network that no recipe has."""
    torch.manual_seed(1)
    model = UNet(UNetConfig(width=4, depth=2, alpha_clip=0.03))
    checkpoint.save(str(tmp_path / "start"), model, checkpoint.describe(model, SIZE, {}, {}), {"val_mad": 1.0})
    return str(tmp_path / "start")


def test_network_and_size_come_from_the_checkpoint(start: str) -> None:
    options = parse(f"--init={start}", "--data=pairs")
    assert options.network() == checkpoint.load(start).model.config
    assert (options.recipe, options.size, options.learning_rate) == ("matting", SIZE, 2e-4)
    recipe = parse("--data=pairs")
    for name in ("ema_decay", "schedule", "augment_fraction", "l1", "recipe_batch"):
        assert getattr(options, name) == getattr(recipe, name)


def test_given_options_win_over_the_checkpoint(start: str, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(f"init: {start}\ndata: pairs\nsize: 64\nwidth: 4\n")
    options = parse("--config", str(file), "--learning-rate=1e-3")
    assert (options.size, options.learning_rate, options.width) == (64, 1e-3, 4)
    assert load_start(options.init, options.network()) is not None


def test_another_network_is_refused_with_its_layers(start: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        train.main([f"--init={start}", "--width=8", "--depth=3", f"--output={tmp_path}"])
    message = str(caught.value)
    assert "expected --width 8, found 4, --depth 3, found 2." in message
    weights = checkpoint.load(start).model.state_dict()
    name = next(iter(weights))
    shapes = ["×".join(map(str, one[name].shape)) for one in (weights, expected_weights(UNetConfig(width=8, depth=3)))]
    assert f"Layers that differ: {name} found {shapes[0]}, expected {shapes[1]}; " in message
    assert message.count(", expected ") == 5
    assert "Leave these options out" in message


def test_options_without_layers_must_agree_too(start: str) -> None:
    with pytest.raises(ConfigError, match=r"--alpha-clip 0.0, found 0.03\. Leave"):
        load_start(start, UNetConfig(width=4, depth=2))


def test_missing_layers_are_named() -> None:
    weight = torch.zeros(2, 3)
    assert differing_layers({"a": weight, "b": weight}, {"b": weight, "c": weight.T}) == [
        "a found 2×3, expected none",
        "c found none, expected 3×2",
    ]


def test_a_run_folder_is_no_checkpoint(start: str) -> None:
    with pytest.raises(CheckpointError, match="such as <output>/<name>/best"):
        parse(f"--init={Path(start).parent}")


def test_raw_and_averaged_network_begin_with_the_checkpoints_predictions(start: str) -> None:
    options = parse(f"--init={start}", "--data=pairs")
    found = load_start(start, options.network())
    assert found
    assert found.identity == checkpoint.load(start).identity
    model = UNet(options.network())
    model.load_state_dict(found.weights)
    trainer = Trainer(model, options.training(), torch.device("cpu"))
    assert trainer.model is not model
    image = torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        expected = checkpoint.load(start).model(image)
        for network in (trainer.model, model):
            assert torch.equal(network.eval()(image), expected)


def test_a_checkpoint_may_be_in_object_storage(start: str, bucket: str) -> None:
    for path in Path(start).iterdir():
        store.write_bytes(f"{bucket}/start/{path.name}", path.read_bytes())
    options = parse(f"--init={bucket}/start", "--data=pairs")
    found, local = load_start(options.init, options.network()), load_start(start, options.network())
    assert found
    assert local
    assert found.record() == {"uri": f"{bucket}/start", "identity": local.identity}


class Stopping(Trainer):
    """Trainer that fails in its first epoch."""

    def train_epoch(self, *arguments: Any) -> Epoch:  # noqa: ARG002
        raise NonFiniteLoss("stopped")


def epochs(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "val_mad" in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:  # noqa: ARG001
    """Run folder of a training on drawn people."""
    output = tmp_path_factory.mktemp("trained")
    small = ["--width=4", "--size=32", "--synthetic-pairs=300", "--learning-rate=5e-3", "--epochs=4"]
    with taken_as_own():
        train.main([*small, f"--output={output}", "--name=first"])
    return output / "first"


@slow
@pytest.mark.usefixtures("own_cluster")
def test_a_run_goes_on_and_ends_where_it_began(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = checkpoint.load(str(trained / "best"))
    options = [f"--init={trained}/best", "--synthetic-pairs=300", "--epochs=1", f"--output={tmp_path}", "--name=run"]
    with pytest.raises(JobError, match="stopped"):
        train.main([*options, "--learning-rate=0"], Stopping)
    (first,) = epochs(tmp_path / "run")
    train.main([*options, "--learning-rate=0"])
    best = checkpoint.load(str(tmp_path / "run/best"))
    rows = epochs(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[0] == first
    assert math.isclose(rows[0]["val_mad"], begin.metrics["val_mad"], rel_tol=1e-3)
    assert best.metrics["val_mad"] <= rows[0]["val_mad"]
    said = capsys.readouterr().out
    assert f"MAD before fine-tuning: {rows[0]['val_mad']:.2f}e-3" in said
    assert "MAD before fine-tuning" in (tmp_path / "run/report.html").read_text()
    assert best.config["recipe"]["init"] == {"uri": f"{trained}/best", "identity": begin.identity}
    identity = json.loads((tmp_path / "run/run.json").read_text())["identity"]
    assert (identity["init"], identity["init_identity"]) == (f"{trained}/best", begin.identity)
    train.main([*options, "--learning-rate=0"])
    assert "is finished: 1 epochs" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="learning_rate was 0"):
        train.main(options)


@slow
def test_fine_tuning_on_few_pairs_of_another_kind_helps(trained: Path, tmp_path: Path) -> None:
    write_folders(tmp_path / "shifted", 32, 32)
    for photo in (tmp_path / "shifted/images").iterdir():  # negatives
        photo.write_bytes(images.encode_png(255 - images.decode_image(photo.read_bytes())))
    options = [f"--init={trained}/best", f"--data={tmp_path / 'shifted'}", "--recipe=quickstart"]
    options += ["--workers=2", "--batch=2"]
    train.main([*options, "--epochs=15", "--learning-rate=2e-3", f"--output={tmp_path}", "--name=run"])
    rows = epochs(tmp_path / "run")
    assert math.isclose(checkpoint.load(str(tmp_path / "run/best")).metrics["val_mad"], min(r["val_mad"] for r in rows))
    assert min(row["val_mad"] for row in rows[1:]) < rows[0]["val_mad"]

"""The options of a training run: their checks, and the configs that follow from them."""

import math
import pickle
from dataclasses import replace

import pytest

from jobs.common import config
from jobs.common.config import ConfigError
from jobs.training.config import CHANGEABLE, TrainConfig, presets
from matting.nn.trainer import TrainingConfig
from matting.nn.unet import UNetConfig


def parse(*argv: str) -> TrainConfig:
    return config.parse(TrainConfig, argv, presets)


def test_configs_of_the_library_are_plain() -> None:
    options = pickle.loads(pickle.dumps(parse("--width=24", "--l1=0.5", "--seed=3")))
    assert type(options.network()) is UNetConfig
    assert options.network() == UNetConfig(width=24)
    assert type(options.training()) is TrainingConfig
    assert (options.training().l1, options.training().seed) == (0.5, 3)


def test_budget_counts_samples_and_seconds() -> None:
    budget = parse("--epochs=7", "--minutes=2").budget(100)
    assert (budget.epochs, budget.samples, budget.seconds) == (7, 100, 120)
    assert TrainConfig().budget(100).seconds == math.inf


def test_default_recipe_follows_from_the_data() -> None:
    assert parse().recipe == "quickstart"
    assert parse("--data=pairs").recipe == "matting"
    assert parse("--data=pairs", "--recipe=baseline").recipe == "baseline"


def test_run_folder_is_named_by_recipe_and_data() -> None:
    assert parse("--output=/runs", "--data=s3://b/one/,s3://b/two").run_uri == "/runs/matting-one-two"
    assert parse("--output=/runs", "--name=first").run_uri == "/runs/first"


def test_identity_has_no_changeable_option() -> None:
    options = parse()
    identity = options.identity({"data_fingerprint": "f"})
    assert identity["data_fingerprint"] == "f"
    assert not CHANGEABLE & identity.keys()
    longer = replace(options, epochs=1000, workers=4, cache="off")
    assert longer.identity({"data_fingerprint": "f"}) == identity
    assert replace(options, width=8).identity({"data_fingerprint": "f"}) != identity


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--bacth=3"], "Did you mean --batch?"),
        (["--epochs=0"], "--epochs must be at least 1"),
        (["--width=0"], "width must be at least 1"),
        (["--augment-size=0"], "--augment-size must be at least 1"),
        (["--augment_fraction=15"], "--augment-fraction is a fraction of the run, from 0 to 1; is 15"),
        (["--max-width=4"], "--max-width must be at least width"),
        (["--minutes=0"], "--minutes must be more than 0"),
        (["--repeats=1,x"], "--repeats takes"),
        (["--workers=4,1"], "--workers takes a number, or a minimum and a maximum"),
        (["--data=pairs", "--size=64"], "of 32 pixels have less than two a side"),
        (["--backgrounds=rooms"], "--backgrounds needs a recipe with augmentation"),
    ],
)
def test_impossible_options_are_explained(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_describes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert "--max-rejected-fraction" in text
    assert "max_rejected" not in text
    options = text.partition("Train a network")[2].split("\n  --")[1:]
    assert len(options) == len(TrainConfig.__dataclass_fields__)
    for option in options:
        name, _, description = option.partition(" ")
        assert len(description.partition("(type:")[0].split()) > 4, name

"""The options of a training run: their checks, and the configs that follow from them."""

import math
import pickle
from dataclasses import replace
from typing import Any

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


@pytest.mark.parametrize(
    ("batch", "samples", "workers", "use_gpu", "expected"),
    [
        ("auto", 100_000, 1, False, 16),  # CPUs: the recipe's
        ("auto", 100_000, 1, True, 512),
        ("auto", 20_000, 1, True, 400),  # 50 steps an epoch
        ("auto", 100_000, "2,8", True, 250),
        ("auto", 100, 1, True, 16),
        (24, 100_000, 8, True, 24),
    ],
)
def test_batch_of_a_worker(batch: Any, samples: int, workers: Any, use_gpu: bool, expected: int) -> None:
    options = TrainConfig(batch=batch, recipe_batch=16, workers=workers)
    assert options.worker_batch(samples, use_gpu) == expected


def test_only_the_baseline_keeps_its_batch_on_gpus() -> None:
    batches = {
        recipe: parse("--data=pairs", f"--recipe={recipe}").worker_batch(10**6, use_gpu=True)
        for recipe in ("baseline", "matting", "night", "quickstart")
    }
    assert batches == {"baseline": 8, "matting": 512, "night": 512, "quickstart": 512}


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
        (["--batch=0"], "--batch must be at least 1"),
        (["--recipe-batch=0"], "--recipe-batch must be at least 1"),
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

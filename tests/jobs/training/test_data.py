"""Training data: the rows of an epoch, the facts that workers receive, and data that cannot be used."""

from pathlib import Path

import numpy as np
import pytest

from jobs.common.config import ConfigError
from jobs.training.config import TrainConfig
from jobs.training.data import open_training_data
from matting.data import images
from matting.data.dataset import DataError
from tests.support.drawing import write_folders


def test_facts_count_what_workers_read() -> None:
    data = open_training_data(TrainConfig(synthetic_pairs=60))
    counts, facts = data.pairs.counts(), data.facts()
    assert facts.epoch_samples == counts["train"]
    assert facts.decoded == counts["train"] + counts["val"]
    assert facts.val_keys == data.pairs.keys["val"]
    assert facts.aspects is None  # without augmentation, photos are squashed to a square
    assert data.fingerprints() == {"data_fingerprint": facts.fingerprint, "backgrounds_fingerprint": None}


def test_augmented_runs_record_aspects(tmp_path: Path) -> None:
    write_folders(tmp_path, 40, 32)
    assert open_training_data(TrainConfig(data=str(tmp_path), augment_fraction=0.5)).facts().aspects == [1.0, 1.0]


def test_repeats_apply_to_each_dataset(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_folders(tmp_path / name, 40, 32)
    data = open_training_data(TrainConfig(data=f"{tmp_path}/one,{tmp_path}/two", repeats="1,3"))
    times = np.bincount(data.epoch_rows)
    assert times.tolist() == [1 if source == 0 else 3 for source in data.pairs.sources("train")]
    with pytest.raises(ConfigError, match="--repeats has 3 numbers and --data 2 URIs"):
        open_training_data(TrainConfig(data=f"{tmp_path}/one,{tmp_path}/two", repeats="1,1,3"))


def test_background_photos_change_the_fingerprint(tmp_path: Path) -> None:
    options = TrainConfig(synthetic_pairs=60, augment_fraction=1, backgrounds=str(tmp_path))
    found = []
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(images.encode_png(np.zeros((32, 32, 3), np.uint8)))
        data = open_training_data(options)
        found.append(data.fingerprints()["backgrounds_fingerprint"])
        counts = data.pairs.counts()
        assert data.facts().decoded == counts["train"] + counts["val"] + len(found)
    assert None not in found
    assert found[0] != found[1]


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="has no pairs for"):
        open_training_data(TrainConfig(synthetic_pairs=1))

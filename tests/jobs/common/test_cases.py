"""Cases of a report's page."""

from pathlib import Path

import numpy as np

from jobs.common.cases import predict_cases
from matting.data.dataset import PairOptions, open_dataset
from matting.data.images import Pixels
from tests.support.drawing import write_folders


def test_best_and_worst_are_predicted_by_each(tmp_path: Path) -> None:
    write_folders(tmp_path, 12, 24)
    pairs = open_dataset(str(tmp_path), PairOptions())
    scores = [(split, key, float(key[-7:-4])) for split, keys in pairs.keys.items() for key in keys]

    def predict_opaque(key: str, image_HWC: Pixels) -> Pixels:
        assert key in pairs.keys["train"] + pairs.keys["val"] + pairs.keys["test"]
        return np.full(image_HWC.shape[:2], 255, np.uint8)

    (tmp_path / "images/person-011.png").write_bytes(b"")
    cases, unreadable = predict_cases(pairs, scores, {"": predict_opaque, ", again": predict_opaque}, per_group=1)
    assert [case.key for case in cases["best"]] == ["images/person-000.png", "images/person-000.png, again"]
    assert cases["worst"] == []
    assert list(unreadable) == ["images/person-011.png"]
    assert unreadable["images/person-011.png"].startswith("scored, and gone since: ")

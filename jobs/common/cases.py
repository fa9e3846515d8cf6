"""Cases of a report's page: the best, median and worst pairs of a dataset, predicted again at their own size."""

from collections.abc import Callable, Mapping, Sequence

from matting.data.dataset import PairDataset
from matting.data.images import Pixels
from matting.results.report import Case, make_case, pick_cases

PredictAlpha = Callable[[str, Pixels], Pixels]  # key, image_HWC -> alpha_HW


def predict_cases(
    pairs: PairDataset,
    scores: Sequence[tuple[str, str, float]],
    predictions: Mapping[str, PredictAlpha],
    per_group: int = 4,
) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """Pick the cases that are worth a look, and predict them.

    Args:
        pairs: Dataset that the scores are of.
        scores: Split, key and MAD of each scored pair.
        predictions: Functions that predict an alpha; each gives a case of every picked pair. The function's name here
            is added to the key in the case's title.
        per_group: Highest number of pairs in each of the groups "best", "median" and "worst".

    Returns:
        Cases by group; and, by key, the reasons why pairs cannot be read any more.
    """
    split_of_key = {key: split for split, key, _ in scores}
    cases: dict[str, list[Case]] = {}
    unreadable: dict[str, str] = {}
    for group, keys in pick_cases([(key, mad) for _, key, mad in scores], per_group).items():
        cases[group] = []
        for key in keys:
            example = pairs.example(split_of_key[key], key)
            if example.image is None or example.alpha is None:
                unreadable[key] = f"scored, and gone since: {example.error}"
                continue
            for name, predict_alpha in predictions.items():
                cases[group].append(
                    make_case(f"{key}{name}", example.image, example.alpha, predict_alpha(key, example.image))
                )
    return cases, unreadable

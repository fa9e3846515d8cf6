"""Training pairs that a trained network contradicts: pairs with a higher error than pairs like them.

    error, coverage and share of grey of each pair -> rank_suspects -> table, the most suspicious pairs first

A network that has learned from mostly right pairs predicts what a wrong matte should have been. Hard pairs have high
errors too, so each is compared with its neighbours: the pairs with the most similar mattes.

Literature: Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 2021.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

NEIGHBOURS = 32
SUSPECT_RATIO = 3.0  # error as a multiple of the neighbours' from which a page calls a pair suspicious
WARNED_WEIGHT = 2.0  # how much more the ratio of a pair counts in the order, if its content is suspicious as well

SUSPECTS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("ratio", pa.float64()),  # the error as a multiple of the neighbours'
        ("mad", pa.float64()),  # error of the network on the pair, MAD ×1e-3
        ("expected", pa.float64()),  # median error of the neighbours
        ("coverage", pa.float64()),  # mean alpha of the matte
        ("grey", pa.float64()),  # share of its pixels that are neither transparent nor opaque
        ("warning", pa.string()),  # what its content shows, or ""
    ]
)


def rank_suspects(scores: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the scored pairs as a table of `SUSPECTS_SCHEMA`, the most suspicious first.

    Pairs are ordered by their ratio, which counts `WARNED_WEIGHT` times for those with a warning.

    Args:
        scores: Rows with key, mad, coverage, grey and warning.
    """
    mad_N = np.array([row["mad"] for row in scores], float)
    features_N2 = np.array([(row["coverage"], row["grey"]) for row in scores], float).reshape(-1, 2)
    expected_N = neighbours_errors(mad_N, features_N2)
    # A tenth of the usual error, so that pairs which are all but perfect are not suspicious for a trifle.
    floor = 0.1 * float(np.median(mad_N)) if len(mad_N) else 0.0
    ratio_N = (mad_N + floor) / np.maximum(expected_N + floor, 1e-9)
    weight_N = np.array([WARNED_WEIGHT if row["warning"] else 1.0 for row in scores])
    order = sorted(range(len(scores)), key=lambda index: (-ratio_N[index] * weight_N[index], scores[index]["key"]))
    rows = [{**scores[index], "ratio": float(ratio_N[index]), "expected": float(expected_N[index])} for index in order]
    return pa.Table.from_pylist(rows, schema=SUSPECTS_SCHEMA)


def neighbours_errors(mad_N: NDArray[np.floating], features_NF: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the median error of each pair's `NEIGHBOURS` nearest pairs, itself left out.

    Features are compared by their ranks, so that none weighs more by its unit. A single pair is its own neighbour.

    Args:
        mad_N: Errors.
        features_NF: Features of the mattes, by which pairs are similar.
    """
    count = len(mad_N)
    if count < 2:
        return mad_N
    ranks_NF = features_NF.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable") / count
    _, nearest = cKDTree(ranks_NF).query(ranks_NF, k=min(count, NEIGHBOURS + 1))
    errors = mad_N[nearest]
    errors[nearest == np.arange(count)[:, None]] = np.nan
    expected: NDArray[np.floating] = np.nanmedian(errors, axis=1)
    return expected

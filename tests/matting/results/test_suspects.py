"""Suspects: pairs with a higher error than pairs like them, against a slow version."""

from typing import Any

import numpy as np

from matting.results.suspects import NEIGHBOURS, SUSPECTS_SCHEMA, neighbours_errors, rank_suspects


def scores(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    coverage = generator.random(count)
    return [
        {
            "key": f"{number:03}",
            "mad": 10 + 40 * coverage[number],
            "coverage": coverage[number],
            "grey": 0.1,
            "warning": "",
        }
        for number in range(count)
    ]


def test_errors_of_neighbours_are_their_median() -> None:
    generator = np.random.default_rng(0)
    mad, features = generator.random(90), generator.random((90, 2))
    ranks = features.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable") / 90
    for index, found in enumerate(neighbours_errors(mad, features)):
        distances = np.hypot(*(ranks - ranks[index]).T)
        distances[index] = np.inf
        assert found == np.median(mad[np.argsort(distances)[:NEIGHBOURS]])


def test_pair_that_is_worse_than_its_like_comes_first() -> None:
    rows = scores(200)
    rows[17]["mad"] *= 3  # less than the largest errors, but of pairs that are harder
    easy = min(range(200), key=lambda number: rows[number]["coverage"])
    rows[easy]["mad"] = 45.0
    table = rank_suspects(rows)
    assert set(table["key"].to_pylist()[:2]) == {"017", f"{easy:03}"}
    assert table["ratio"].to_pylist() == sorted(table["ratio"].to_pylist(), reverse=True)
    assert table.schema == SUSPECTS_SCHEMA


def test_warned_pair_comes_before_another_of_the_same_ratio() -> None:
    rows = scores(200)
    for row in (rows[50], rows[150]):
        row["mad"] *= 3
    first, second = rank_suspects(rows)["key"].to_pylist()[:2]
    next(row for row in rows if row["key"] == second)["warning"] = "matte: seems inverted"
    assert rank_suspects(rows)["key"].to_pylist()[:2] == [second, first]


def test_few_pairs_and_none_can_be_ranked() -> None:
    assert rank_suspects([]).num_rows == 0
    assert rank_suspects(scores(1)).to_pylist()[0]["ratio"] == 1
    assert rank_suspects(scores(5)).num_rows == 5
    perfect = [{**row, "mad": 0.0} for row in scores(5)]
    assert np.isfinite(rank_suspects(perfect)["ratio"].to_numpy()).all()

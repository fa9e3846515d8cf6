"""Score training pairs with the best checkpoint after a run, and rank those that it contradicts.

TrainingData, best checkpoint -> tasks of Ray -> matting.results.suspects -> suspects.parquet, cases of the page
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from jobs.common import cluster
from jobs.training.data import TrainingData
from jobs.training.decode import TASK_ROWS
from matting.data.dataset import PairDataset
from matting.data.rows import Rows
from matting.inference.network import Network
from matting.inference.predictor import Predictor
from matting.nn.checkpoint import Checkpoint
from matting.results.report import Case, make_case
from matting.results.suspects import SUSPECT_RATIO, SUSPECTS_SCHEMA, rank_suspects

# Training pairs that are scored at most, evenly chosen: some 90 seconds on two cores, seconds on a cluster.
MAX_SCORED = 10_000
SHOWN_SUSPECTS = 8  # training pairs that the page shows
_GREY_RANGE = (8, 247)


def score_training_pairs(data: TrainingData, best: Checkpoint) -> pa.Table:
    """Return the training pairs, the most suspicious first, as :func:`matting.results.suspects.rank_suspects` does.

    At most ``MAX_SCORED`` pairs are scored. Drawn people are not: their mattes are exact.
    """
    rows = data.pairs.splits["train"]
    if data.options.data == "synthetic":
        return SUSPECTS_SCHEMA.empty_table()
    numbers = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_SCORED)).astype(int))
    cluster.start(cpus=0, reading=1, gpus=0, what="Scoring tasks")
    network = ray.put(Network(best, number_format="fp32"))
    blocks = [numbers[start : start + TASK_ROWS] for start in range(0, len(numbers), TASK_ROWS)]
    tasks = [score_block_task.remote(rows.take(block), network) for block in blocks]
    return rank_suspects([row for block in ray.get(tasks) for row in block])


@ray.remote(num_cpus=1, max_retries=-1)
def score_block_task(rows: Rows, network: Network) -> list[dict[str, Any]]:
    """Score a block of training pairs at the network's size; those that cannot be decoded are left out."""
    examples = [example for example in rows.examples(network.size) if not example.error]
    if not examples:
        return []
    alphas = network.small_alphas(np.stack([example.image for example in examples if example.image is not None]))
    scored = []
    for example, pred_alpha in zip(examples, alphas, strict=True):
        assert example.alpha is not None
        grey = (example.alpha > _GREY_RANGE[0]) & (example.alpha < _GREY_RANGE[1])
        scored.append(
            {
                "key": example.key,
                "mad": 1e3 * float(np.abs(pred_alpha.astype(np.int16) - example.alpha).mean()) / 255,
                "coverage": float(example.alpha.mean()) / 255,
                "grey": float(grey.mean()),
                "warning": example.warning,
            }
        )
    return scored


def encode_suspects(suspects: pa.Table) -> bytes:
    """Return suspects.parquet."""
    sink = io.BytesIO()
    pq.write_table(suspects, sink)
    return sink.getvalue()


def suspicious_pairs(suspects: pa.Table) -> list[tuple[str, str]]:
    """Return key and reason of each pair that has a much higher error than its neighbours, the worst first."""
    return [
        (row["key"], f"MAD {row['mad']:.0f}e-3, {row['ratio']:.1f} times that of training pairs with a similar matte")
        for row in suspects.to_pylist()
        if row["ratio"] >= SUSPECT_RATIO
    ]


def suspect_cases(pairs: PairDataset, suspects: pa.Table, predictor: Predictor) -> Sequence[Case]:
    """Return the most suspicious training pairs as cases of the page."""
    cases = []
    for row in suspects.slice(0, SHOWN_SUSPECTS).to_pylist():
        example = pairs.example("train", row["key"])
        if example.image is not None and example.alpha is not None:
            title = f"{row['key']}, {row['ratio']:.1f} times the error of its neighbours"
            cases.append(make_case(title, example.image, example.alpha, predictor.alphas([example.image])[0]))
    return cases

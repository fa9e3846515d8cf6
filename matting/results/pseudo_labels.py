"""Pseudo-labels: predicted mattes that serve as training pairs of another network (self-training)."""

import hashlib
import json

import pyarrow.compute as pc

from matting.data.pairs import Pair, Pairing, PairsError
from matting.messages import first_few
from matting.results import ledger
from matting.results.cutouts import has_matte
from matting.storage.uri import join_uri


def pair_predictions(output: str, photos: str, min_confidence: float) -> Pairing:
    """Pair photos with the mattes that jobs/predict.py made of them, where its confidence is high enough.

    All pairs are in the training split, because a network must not be judged by the guesses of another one.

    Args:
        output: URI of the folder with mattes and ledger.
        photos: URI of the folder of photos.
        min_confidence: Lowest confidence of a pair, as in the ledger, in [0, 1].

    Raises:
        PairsError: No photo of the ledger has a matte with enough confidence, or some have only finished cutouts.
        LedgerError, StorageError: The ledger is damaged, or cannot be read.
    """
    known = ledger.read(output, ("key", "etag", "model", "settings", "status", "confidence", "outputs"))
    done = known.filter(pc.equal(known["status"], "done"))
    confident = done.filter(pc.greater_equal(done["confidence"], min_confidence))
    if not len(confident):
        raise PairsError(
            f"Of {len(done)} mattes in {output}, none has a confidence of at least {min_confidence:g}. Give the output "
            "folder of jobs/predict.py, or ask for less: the ledger there has the confidence of each."
        )
    rows = confident.to_pylist()
    if without := [row["key"] for row in rows if not has_matte(row)]:
        raise PairsError(
            f"{output} has cutouts that are cropped or on a background, and no mattes, of {len(without)} photos: "
            f"{first_few(without)}. Predict them again with --write alpha."
        )
    pairs = [
        Pair(row["key"], join_uri(photos, row["key"]), join_uri(output, row["outputs"][0]), "train") for row in rows
    ]
    contents = confident.drop_columns(["confidence", "status"]).to_pylist()
    return Pairing("predictions", tuple(pairs), (), hashlib.sha256(json.dumps(contents).encode()).hexdigest())

"""Pseudo-labels: predicted mattes that serve as training pairs of another network (self-training)."""

import hashlib
import json

import pyarrow.compute as pc

from matting.data.pairs import Pair, Pairing, PairsError
from matting.data.photos import find_photos
from matting.messages import first_few
from matting.results import ledger
from matting.results.cutouts import has_matte
from matting.storage.uri import join_uri


def pair_predictions(output: str, photos: str, min_confidence: float) -> Pairing:
    """Pair photos with the mattes that jobs/predict.py made of them, where its confidence is high enough.

    All pairs are in the training split, because a network must not be judged by the guesses of another one.

    Args:
        output: URI of the folder with mattes and ledger.
        photos: URI of the photos, as the job was given it: a folder, a tar archive, or a table of URIs.
        min_confidence: Lowest confidence of a pair, as in the ledger, in [0, 1].

    Raises:
        PairsError: No photo of the ledger has a matte with enough confidence, some have only finished cutouts, or none
            is among the photos.
        LedgerError, StorageError: The ledger is damaged, or cannot be read.
        PhotosError, TableError: The photos cannot be listed.
    """
    known = ledger.read(output, ("key", "etag", "model", "settings", "status", "confidence", "outputs"))
    done = known.filter(pc.equal(known["status"], "done"))
    confident = done.filter(pc.greater_equal(done["confidence"], min_confidence))
    if not len(confident):
        raise PairsError(
            f"Of {len(done)} mattes in {output}, none has a confidence of at least {min_confidence:g}. Give the output "
            "folder of jobs/predict.py, or ask for less: the ledger there has the confidence of each."
        )
    if without := [row["key"] for row in confident.to_pylist() if not has_matte(row)]:
        raise PairsError(
            f"{output} has cutouts that are cropped or on a background, and no mattes, of {len(without)} photos: "
            f"{first_few(without)}. Predict them again with --write alpha."
        )
    listed = find_photos(photos, output).table
    listed = listed.filter(pc.is_null(listed["row"]))  # a pair's image has a URI, which bytes in Parquet have not
    places = listed["uri"].take(pc.index_in(confident["key"], listed["key"].combine_chunks()))
    pairs = []
    unpaired = []
    for row, place in zip(confident.to_pylist(), places.to_pylist(), strict=True):
        if place:
            pairs.append(Pair(row["key"], place, join_uri(output, row["outputs"][0]), "train"))
        else:
            unpaired.append((row["key"], f"has a matte, and is not among the photos of {photos} that have a URI"))
    if not pairs:
        raise PairsError(
            f"None of {len(unpaired)} mattes in {output} has its photo in {photos}: {unpaired[0][0]} is not there. "
            "Give the photos that they were predicted from, as files or as a table of URIs."
        )
    contents = confident.drop_columns(["confidence", "status"]).to_pylist()
    return Pairing(
        "predictions", tuple(pairs), tuple(unpaired), hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    )

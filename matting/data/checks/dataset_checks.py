"""Look at a sample of a dataset before it is used: are its mattes wrong as a whole?

    runs of neighbouring pairs -> judge -> Verdict: what to stop at, what to say

Neighbours are sampled, because mattes that are shifted by one in a listing fit the photos beside theirs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from matting.data.checks.pair_checks import MIN_AGREEMENT, edge_agreement
from matting.data.rows import Example
from matting.messages import first_few

RUNS = 4  # runs of neighbours in a sample, evenly spaced
RUN_PAIRS = 8  # pairs in a run
_MAX_SHIFT = 2  # places in the listing by which mattes may be shifted
# How much better the mattes of other photos must fit than a photo's own, and how many standard errors that must be. In
# 200 samples of ten real datasets nothing was found; shifted by one or two places, every sample was found.
_MIN_GAIN, _MIN_ERRORS = 0.05, 4.0
_MIN_TOLD = 5  # pairs with enough edge to tell
_MIN_SURE = 16  # such pairs, from which a low mean agreement is no chance


class Verdict(NamedTuple):
    """What a sample says about a dataset.

    Attributes:
        failure: Why the mattes are wrong as a whole, and what to do; or "".
        warning: What is suspicious, but may be meant so; or "".
    """

    failure: str
    warning: str


def judge(name: str, runs: Sequence[Sequence[Example]]) -> Verdict:
    """Judge a dataset by a sample of its pairs.

    Args:
        name: Name of the dataset, for the messages.
        runs: Runs of neighbours in the listing, squashed to `pair_checks.LOOK_SIDE`.
    """
    looks = [example.look for run in runs for example in run if example.look]
    visible = [look for look in looks if look.peak]
    if not looks:
        return Verdict("", "")
    of = f"{name}: of {len(looks)} mattes that were looked at"
    peak, opaque = max(look.peak for look in looks), max(look.opaque for look in looks)
    if visible and all(look.is_dark for look in visible):
        likely = next(value for value in (1, 3, 100, 255, 1023, 4095, 16383, 65535) if value >= peak)
        return Verdict(
            f"{of}, none has a value above {peak}, where {opaque} is read as opaque. If {likely} means opaque, give "
            f"--matte-range {likely}.",
            "",
        )
    counts = {
        "above": sum(look.peak > look.opaque for look in looks),
        "empty": sum(look.highest == 0 for look in looks),
        "trimaps": sum(look.is_trimap for look in looks),
        "inverted": sum(look.is_inverted for look in looks),
    }
    most = len(looks) / 2
    if counts["above"] > most:
        return Verdict(f"{of}, {counts['above']} have values above --matte-range {opaque}, up to {peak}.", "")
    if counts["inverted"] > most:
        return Verdict(
            f"{of}, {counts['inverted']} seem inverted: opaque along the border, and less so in the middle. If they "
            "show the background, give --invert; if --invert is given, leave it out.",
            "",
        )
    if counts["trimaps"] > most:
        return Verdict(
            f"{of}, {counts['trimaps']} seem to be trimaps: wide bands of one grey along the edges. Give mattes.", ""
        )
    if shifted := [found for run in runs if (found := shift_of(run))]:
        return Verdict(f"{name}: mattes fit the photos of other pairs better than their own: {first_few(shifted)}.", "")
    agreements = np.array([look.agreement for look in looks])
    told = agreements[~np.isnan(agreements)]
    if len(told) >= _MIN_TOLD and told.mean() < MIN_AGREEMENT:
        message = (
            f"{of}, the edges of most do not follow their photos' (mean agreement {told.mean():.2f}; mattes of other "
            "photos have 0.5, real ones 0.65 and more). Look whether each matte is its photo's."
        )
        return Verdict(message, "") if len(told) >= _MIN_SURE else Verdict("", message)
    if counts["empty"] > most:
        return Verdict("", f"{of}, {counts['empty']} are empty.")
    suspicious = [f"{example.key}: {example.warning}" for run in runs for example in run if example.warning]
    if len(suspicious) > 0.2 * len(looks):
        return Verdict("", f"{of}, {len(suspicious)} are suspicious: {first_few(suspicious)}.")
    return Verdict("", "")


def shift_of(run: Sequence[Example]) -> str:
    """Return by how many places the mattes of a run of neighbours are shifted, in words; or "" if they are not."""
    known = [
        (e.image, e.alpha, e.look.agreement) for e in run if e.image is not None and e.alpha is not None and e.look
    ]
    own = np.array([agreement for _, _, agreement in known])
    if np.count_nonzero(~np.isnan(own)) < _MIN_TOLD or np.nanmean(own) >= MIN_AGREEMENT + _MIN_GAIN:
        return ""
    for shift in (places for size in range(1, _MAX_SHIFT + 1) for places in (size, -size)):
        gains = np.array(
            [
                edge_agreement(image, known[index + shift][1]) - agreement
                for index, (image, _, agreement) in enumerate(known)
                if 0 <= index + shift < len(known)
            ]
        )
        told = gains[~np.isnan(gains)]
        if len(told) < _MIN_TOLD:
            continue
        error = told.std(ddof=1) / np.sqrt(len(told))
        if told.mean() > _MIN_GAIN and told.mean() > _MIN_ERRORS * error:
            places = f"{abs(shift)} place{'s' if abs(shift) > 1 else ''} {'further on' if shift > 0 else 'before'}"
            return f"from {run[0].key!r} to {run[-1].key!r}, photos fit the mattes {places} in the listing"
    return ""

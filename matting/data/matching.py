"""Match names of images and mattes that agree, or nearly do: exact names first, and words for those that look alike."""

from collections import Counter
from collections.abc import Mapping, Sequence

from matting.messages import look_alike

_ALONE = "has no "  # start of the reason of a file that has no partner


def match_group(
    images: Sequence[str], mattes: Sequence[str], stems: Mapping[str, tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Return the pairs of a group of files that could go together, and the images and mattes that are left.

    One image and one matte are a pair. Of several, those are whose names agree exactly, and with no other's.

    Args:
        images: Keys of the group's images.
        mattes: Keys of its mattes.
        stems: The names without suffix that the matte of an image may have, by the image's key.
    """
    if len(images) == len(mattes) == 1:
        return [(images[0], mattes[0])], [], []
    fitting = {key: [matte for matte in mattes if matte.rpartition(".")[0] in stems[key]] for key in images}
    uses = Counter(matte for candidates in fitting.values() for matte in candidates)
    found = [(key, fit[0]) for key, fit in fitting.items() if len(fit) == 1 and uses[fit[0]] == 1]
    paired = {name for pair in found for name in pair}
    return found, [key for key in images if key not in paired], [key for key in mattes if key not in paired]


def with_look_alikes(
    unpaired: Sequence[tuple[str, str]], stems: Mapping[str, tuple[str, str]]
) -> list[tuple[str, str]]:
    """Add to the reason of an unpaired image which unpaired matte looks like its own, and how their names differ.

    Args:
        unpaired: Keys and reasons of unpaired files.
        stems: As in `match_group`.
    """
    alone = [key for key, reason in unpaired if reason.startswith(_ALONE)]
    mattes = {look_alike(stem): stem for stem in (key.rpartition(".")[0] for key in alone if key not in stems)}
    told = []
    for key, reason in unpaired:
        expected = stems[key][0] if key in stems and reason.startswith(_ALONE) else ""
        if other := mattes.get(look_alike(expected)):
            reason += f"; a name that looks alike differs: {other!a} for {expected!a}"
        told.append((key, reason))
    return told

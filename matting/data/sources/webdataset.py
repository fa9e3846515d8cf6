"""Pair the files of WebDataset's samples: `a.jpg` with `a.png` or `a.matte.png`.

A sample is all files of one folder whose names are equal up to their first dot, however their accents are composed in
Unicode; what follows the dot names the field.

    matte   `.matte.<ext>`, `.alpha.<ext>` or `.mask.<ext>`; without one of these, the `.png` beside one other image
    image   `.image.<ext>` or `.photo.<ext>`, or the only other `.<ext>`

`<ext>` is the suffix of an image. Other fields, such as `.json` or `.trimap.png`, are ignored.
"""

import unicodedata
from collections import defaultdict

from matting.data.images import IMAGE_SUFFIXES

_ROLES = {"matte": "matte", "alpha": "matte", "mask": "matte", "image": "image", "photo": "image", "": "plain"}


def pair_samples(keys: list[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pair the images and mattes of samples.

    Args:
        keys: Keys of files.

    Returns:
        Keys of the image and the matte of each pair; and (key, reason) of each image file without a partner.
    """
    samples: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for key in keys:
        folder, slash, name = key.rpartition("/")
        sample, _, field = name.partition(".")
        if field.rpartition(".")[2].lower() in IMAGE_SUFFIXES:
            samples[unicodedata.normalize("NFC", folder + slash + sample)].append((field.lower(), key))
    pairs = []
    unpaired = []
    for sample, fields in samples.items():
        image, matte, reason = _choose(sample, fields)
        if reason:
            unpaired += [(key, reason) for _, key in fields]
        else:
            pairs.append((image, matte))
    return pairs, unpaired


def _choose(sample: str, fields: list[tuple[str, str]]) -> tuple[str, str, str]:
    """Return the keys of the image and the matte of a sample; or a reason why it has not both."""
    by_role: dict[str, list[str]] = {"matte": [], "image": [], "plain": []}
    for field, key in fields:
        if role := _ROLES.get(field.rpartition(".")[0]):
            by_role[role].append(key)
    mattes, images, plain = by_role.values()
    if not mattes and len(plain) + len(images) == 2:
        pngs = [key for key in plain if key.lower().endswith(".png")]
        mattes = pngs if len(pngs) == 1 else []
        plain = [key for key in plain if key not in mattes]
    images = images or plain
    if len(images) == len(mattes) == 1:
        return images[0], mattes[0], ""
    if not mattes:
        return "", "", f"has no matte; looked for {sample}.png beside another image, and for {sample}.matte.png"
    if not images:
        return "", "", f"has no image; looked for {sample}.jpg and {sample}.image.jpg"
    return "", "", f"is ambiguous: {', '.join(images)} could go with {', '.join(mattes)}"

"""Choose and decode background photos, which show no people; augmentation composites people over them.

    choose   URI of photos    -> rows of the photos to use; nothing is decoded
    decode   some of the rows -> images uint8 (N, S, S, 3), and why the others cannot be used

A training run chooses once; its workers decode the rows in tasks.
"""

import numpy as np
import pyarrow as pa

from matting.data import images
from matting.data.images import Pixels
from matting.data.photo_tables import ReadFailure
from matting.data.photos import find_photos, read_photos

MAX_BACKGROUNDS = 2_000  # photos in a training run: at 128 pixels a side, 98 MB on every worker
_FETCHES = 16  # photos in flight at a time


def choose(uri: str, seed: int) -> pa.Table:
    """Choose the background photos of a training run: all, or `MAX_BACKGROUNDS` of them at random.

    Args:
        uri: URI of a folder or table of photos; see `matting.data.photos.find_photos`.
        seed: Random seed of the choice.

    Returns:
        Rows of `Photos.table`, in its order.

    Raises:
        PhotosError, StorageError: There are no photos, or they cannot be listed.
    """
    table = find_photos(uri).table
    if len(table) <= MAX_BACKGROUNDS:
        return table
    return table.take(np.sort(np.random.default_rng(seed).choice(len(table), MAX_BACKGROUNDS, replace=False)))


def decode(rows: pa.Table, size: int) -> tuple[Pixels, dict[str, str]]:
    """Decode the largest centered square of each photo.

    Args:
        rows: Rows that `choose` returned, or some of them.
        size: Side of the resized squares, in pixels.

    Returns:
        Images uint8 (N, size, size, 3) of the N usable photos; and the reason for each other photo, by its URI.
    """
    squares, reasons = [], {}
    places = rows.select(["uri", "row"]).to_pylist()
    for index, data in read_photos(rows, _FETCHES):
        try:
            if isinstance(data, ReadFailure):
                raise images.BadImage(data.reason)
            image_HWC = images.decode_photo(data, size).image_HWC
        except images.BadImage as error:
            uri, row = places[index].values()
            reasons[uri if row is None else f"{uri}, row {row}"] = str(error)
            continue
        height, width, _ = image_HWC.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        squares.append(images.resize(image_HWC[top : top + side, left : left + side], size, size))
    return np.stack(squares) if squares else np.empty((0, size, size, 3), np.uint8), reasons

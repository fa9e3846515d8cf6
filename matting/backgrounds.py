"""Photos without people, before which training places some of its own.

    choose   the photos of a collection   -> some of them: which, not their pixels
    decode   a few of these               -> image uint8 (N, S, S, 3), and why the others cannot be used

Knows no networks and no cluster.
"""

import numpy as np
import pyarrow as pa

from matting import images
from matting.photos import find_photos, read_photos

MOST = 2_000  # that a run takes: at 128 pixels, 98 MB on every worker
FETCHES = 16  # photos in flight at a time


def choose(uri: str, seed: int) -> pa.Table:
    """The photos to take of a collection: all, or ``MOST`` of them, drawn at random.

    Args:
        uri: of a folder or a table of photos, as :func:`matting.photos.find_photos` takes it.
        seed: of the draw.

    Returns:
        Rows of ``Photos.table``, in its order.

    Raises:
        PhotosError, StorageError: it has no photos, or cannot be read.
    """
    table = find_photos(uri).table
    if len(table) <= MOST:
        return table
    return table.take(np.sort(np.random.default_rng(seed).choice(len(table), MOST, replace=False)))


def decode(rows: pa.Table, size: int) -> tuple[np.ndarray, dict[str, str]]:
    """The largest square in the middle of each photo.

    Args:
        rows: some that were chosen.
        size: of the squares, in pixels a side.

    Returns:
        image uint8 (N, size, size, 3) of the N that can be used; and why the others cannot, by where they are.
    """
    pictures, reasons = [], {}
    places = rows.select(["uri", "row"]).to_pylist()
    for index, data in read_photos(rows, FETCHES):
        try:
            if isinstance(data, str):
                raise images.BadImage(data)
            image_HWC, _, _ = images.decode_reduced(data, size)
        except images.BadImage as error:
            uri, row = places[index].values()
            reasons[uri if row is None else f"{uri}, row {row}"] = str(error)
            continue
        height, width, _ = image_HWC.shape
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        pictures.append(images.resize(image_HWC[top : top + side, left : left + side], size, size))
    return np.stack(pictures) if pictures else np.empty((0, size, size, 3), np.uint8), reasons

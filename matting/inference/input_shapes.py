"""Input shapes: the square that a network was trained on, and rectangles for photos much wider or taller than that.

Squashed to the square, the people of a wide photo become thin. A rectangle of no more pixels keeps them in about the
proportions that the network learned.
"""

from matting.nn.checkpoint import Aspects

Shape = tuple[int, int]  # (width, height) in pixels

# A photo gets a rectangle if it is wider than the widest training image by _WIDER, or taller than the tallest one by
# _TALLER; if it is beyond that by _FARTHER again, it gets a longer rectangle. The bound on wide photos is the nearer
# one because networks do worse on people who were made thin than on people who were made wide.
_WIDER = 1.2
_TALLER = 1.4
_FARTHER = 7 / 6


def input_shape(aspect: float, size: int, learned: Aspects | None) -> Shape:
    """Return the input shape for photos whose width over height is ``aspect``; see :func:`input_shapes`."""
    return next(shape for lowest, shape in reversed(input_shapes(size, learned)) if aspect >= lowest)


def input_shapes(size: int, learned: Aspects | None) -> list[tuple[float, Shape]]:
    """Return all input shapes of a network, from the tallest to the widest.

    Args:
        size: Side of the squares that the network was trained on, in pixels.
        learned: Range of width over height of the training images before they were squashed; None if unknown, which
            leaves the square as the only shape.

    Returns:
        Pairs of the lowest width over height that a shape is for, and the shape. On either side of the square are
        rectangles of 6/5 by 4/5 and of 6/5 by 3/5 of its side.
    """
    if not learned:
        return [(0.0, (size, size))]
    narrowest, widest = learned[0] / _TALLER, learned[1] * _WIDER
    long, short, shortest = (fifths * size // 5 for fifths in (6, 4, 3))
    return [
        (0.0, (shortest, long)),
        (narrowest / _FARTHER, (short, long)),
        (narrowest, (size, size)),
        (widest, (long, short)),
        (widest * _FARTHER, (long, shortest)),
    ]

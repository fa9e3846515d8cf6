"""Reference of upsampling and the color model of refinement, pixel by pixel: slow, obvious, without code of matting/.

Alphas (H, W) and images (H, W, 3) are float64 in [0, 1].
"""

import math

import numpy as np


def reduce(values, width, height):
    """Resize as training does: a new pixel is the mean of the old ones under a triangle as wide as two new pixels."""
    return _along(_along(values, height, _triangle, 0), width, _triangle, 1)


def upsample(small_alpha, width, height, sharpening):
    small_alpha = _sharpen(_sharpen(small_alpha, height, 0, sharpening), width, 1, sharpening)
    return np.clip(_along(_along(small_alpha, height, _keys, 0), width, _keys, 1), 0, 1)


def guided(small_alpha, image, sharpening, detail, spread, noise, solid):
    height, width = image.shape[:2]
    small_height, small_width = small_alpha.shape
    photo = reduce(image, min(width, round(detail * small_width)), min(height, round(detail * small_height)))
    small_image = reduce(photo, small_width, small_height)
    maps = np.zeros((small_height, small_width, 7))
    for row in range(small_height):
        for column in range(small_width):
            front, front_variance = _moments(small_image, small_alpha, row, column)
            back, back_variance = _moments(small_image, 1 - small_alpha, row, column)
            maps[row, column] = [*front, *back, 0]
            maps[row, column, 6] = front_variance + back_variance + front @ front + back @ back
    priors = upsample(small_alpha, photo.shape[1], photo.shape[0], sharpening)
    steps = np.zeros(priors.shape)
    for row in range(photo.shape[0]):
        for column in range(photo.shape[1]):
            prior = priors[row, column]
            if solid < prior < 1 - solid:
                here = _bilinear(maps, row, column, *priors.shape)
                front, back = here[:3], here[3:6]
                variance = here[6] - front @ front - back @ back
                across = front - back
                residual = photo[row, column] - prior * front - (1 - prior) * back
                prior_variance = prior * (1 - prior)
                step = prior_variance * (across @ residual)
                steps[row, column] = step / (prior_variance * (across @ across) + spread * variance + noise)
    alpha = upsample(small_alpha, width, height, sharpening)
    for row in range(height):
        for column in range(width):
            moved = alpha[row, column] + _bilinear(steps, row, column, height, width)
            alpha[row, column] = min(max(moved, 0), 1)
    return alpha


def _moments(image, weights, row, column):
    """Return the weighted mean color of 3 × 3 pixels, and its variance summed over the channels."""
    total, first, second = 0.0, np.zeros(3), 0.0
    for y in range(max(row - 1, 0), min(row + 2, image.shape[0])):
        for x in range(max(column - 1, 0), min(column + 2, image.shape[1])):
            near = (2 - abs(y - row)) * (2 - abs(x - column)) * (weights[y, x] + 1e-3)
            total += near
            first += near * image[y, x]
            second += near * (image[y, x] @ image[y, x])
    mean = first / total
    return mean, second / total - mean @ mean


def _bilinear(values, row, column, height, width):
    """Return the interpolated value at a pixel of a height × width grid over all of `values`."""
    y = (row + 0.5) * values.shape[0] / height - 0.5
    x = (column + 0.5) * values.shape[1] / width - 0.5
    y, x = min(max(y, 0), values.shape[0] - 1), min(max(x, 0), values.shape[1] - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
    upper = values[top, left] * (left + 1 - x) + values[top, right] * (x - left)
    lower = values[bottom, left] * (left + 1 - x) + values[bottom, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


def _sharpen(values, target, axis, sharpening):
    values = np.moveaxis(values, axis, 0)
    amount = sharpening * (1 - min(1, len(values) / target) ** 2)
    last = len(values) - 1
    sharp = [
        values[i] + amount * (values[i] - values[max(i - 1, 0)]) + amount * (values[i] - values[min(i + 1, last)])
        for i in range(len(values))
    ]
    return np.moveaxis(np.array(sharp), 0, axis)


def _along(values, size, kernel, axis):
    """Resize one axis. The kernel is stretched where the axis shrinks, and normalized where it crosses the edge."""
    values = np.moveaxis(values, axis, 0)
    scale = len(values) / size
    stretch = max(scale, 1)
    result = []
    for i in range(size):
        center = (i + 0.5) * scale - 0.5
        weights = [kernel((j - center) / stretch) for j in range(len(values))]
        result.append(sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights))
    return np.moveaxis(np.array(result), 0, axis)


def _triangle(x):
    return max(0.0, 1 - abs(x))


def _keys(x):
    """Return Keys' cubic convolution kernel at x, with a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

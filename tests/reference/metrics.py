"""Reference of the six metrics, from their definitions, one pixel at a time: slow, obvious, without code of matting/.

(pred_alpha_HW, true_alpha_HW) uint8 -> one number in the reported unit.
"""

import math
from collections import deque

import numpy as np


def image_metrics(pred_alpha_HW, true_alpha_HW):
    functions = {"mad": mad, "mse": mse, "sad": sad, "grad": grad, "conn": conn, "iou": iou}
    return {name: function(pred_alpha_HW, true_alpha_HW) for name, function in functions.items()}


def opacities(alpha_HW):
    """Return {(row, column): opacity}: bytes divided by 255 in float32, then converted to Python's floats."""
    return {place: float(np.float32(value) / np.float32(255)) for place, value in np.ndenumerate(alpha_HW)}


def mad(pred_alpha_HW, true_alpha_HW):
    pred, true = opacities(pred_alpha_HW), opacities(true_alpha_HW)
    return 1000 * sum(abs(pred[p] - true[p]) for p in true) / len(true)


def mse(pred_alpha_HW, true_alpha_HW):
    pred, true = opacities(pred_alpha_HW), opacities(true_alpha_HW)
    return 1000 * sum((pred[p] - true[p]) ** 2 for p in true) / len(true)


def sad(pred_alpha_HW, true_alpha_HW):
    pred, true = opacities(pred_alpha_HW), opacities(true_alpha_HW)
    return sum(abs(pred[p] - true[p]) for p in true) / 1000


def iou(pred_alpha_HW, true_alpha_HW):
    pred = {p for p, alpha in opacities(pred_alpha_HW).items() if alpha >= 0.5}
    true = {p for p, alpha in opacities(true_alpha_HW).items() if alpha >= 0.5}
    return len(pred & true) / len(pred | true) if pred | true else 1.0


def grad(pred_alpha_HW, true_alpha_HW):
    difference = gradient_magnitude(pred_alpha_HW) - gradient_magnitude(true_alpha_HW)
    return (difference**2).sum() / 1000


def gradient_magnitude(alpha_HW, sigma=1.4, cut=1e-2):
    alpha = opacities(alpha_HW)
    low, high = min(alpha.values()), max(alpha.values())
    magnitude_HW = np.zeros(alpha_HW.shape)
    if low == high:
        return magnitude_HW

    def gaussian(x):
        return math.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))

    radius = 0
    while gaussian(radius) >= cut:
        radius += 1
    steps = range(-radius, radius + 1)
    kernel = np.array([[-x / sigma**2 * gaussian(x) * gaussian(y) for x in steps] for y in steps])
    kernel /= math.sqrt((kernel**2).sum())

    normalized_HW = np.array([(value - low) / (high - low) for value in alpha.values()]).reshape(alpha_HW.shape)
    padded_HW = np.pad(normalized_HW, radius, mode="edge")
    for row, column in alpha:
        window = padded_HW[row : row + len(steps), column : column + len(steps)]
        magnitude_HW[row, column] = math.hypot((window * kernel).sum(), (window * kernel.T).sum())
    return magnitude_HW


def largest_component(mask_HW):
    """Return the largest 4-connected component of a mask, by flood fill; of equals, the first in reading order."""
    largest = set()
    unseen = {place for place, inside in np.ndenumerate(mask_HW) if inside}
    for start in sorted(unseen):
        component, queue = set(), deque([start])
        while queue:
            row, column = place = queue.popleft()
            if place in unseen:
                unseen.remove(place)
                component.add(place)
                queue.extend([(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)])
        if len(component) > len(largest):
            largest = component
    component_HW = np.zeros(mask_HW.shape, dtype=bool)
    for place in largest:
        component_HW[place] = True
    return component_HW


def conn(pred_alpha_HW, true_alpha_HW, largest_component=largest_component):
    pred, true = opacities(pred_alpha_HW), opacities(true_alpha_HW)
    thresholds = np.arange(0, 1.1, 0.1)
    components = []
    for threshold in thresholds[1:]:
        both = [pred[p] >= threshold and true[p] >= threshold for p in true]
        components.append(largest_component(np.array(both).reshape(true_alpha_HW.shape)))

    def phi(alpha, level):
        return 1 - (alpha - level) if alpha - level >= 0.15 else 1

    total = 0.0
    for p in true:
        level = 0.0
        for threshold, component_HW in zip(thresholds[1:], components, strict=True):
            if not component_HW[p]:
                break
            level = threshold
        total += abs(phi(pred[p], level) - phi(true[p], level))
    return total / 1000

"""Study: the CPU time of a photo in a loop around MediaPipe's selfie segmenter, and in a loop of predict's functions.

    pip install ai-edge-litert
    python -m tests.studies.selfie selfie_segmentation.tflite --photos FOLDER --checkpoint CHECKPOINT

The model, 256 × 256, is in the wheels of mediapipe up to 0.10.21. The loops take turns, 256 photos each, in one process
with one thread: decode, resize, network, resize, PNG; `--refine none`, the fastest number format.
"""

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jobs.bench.loop import BLOCK_PHOTOS, block_calls
from matting.data.photos import find_photos
from matting.nn.precision import fastest_number_format
from matting.storage.uri import absolute_uri

ROUNDS = 8
SIDE = 256


def selfie_loop(model: Path, photos: list[str], output: Path) -> Callable[[], None]:
    """Return a function that writes a matte of each photo, as a user would with MediaPipe's model."""
    interpreter: Any = importlib.import_module("ai_edge_litert.interpreter").Interpreter(str(model), num_threads=1)
    interpreter.allocate_tensors()
    first, last = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run() -> None:
        for number, photo in enumerate(photos):
            image = Image.open(photo).convert("RGB")
            small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)[None] / 255
            interpreter.set_tensor(first, small)
            interpreter.invoke()
            matte = (interpreter.get_tensor(last)[0, :, :, 0] * 255).round().astype(np.uint8)
            resized = Image.fromarray(matte).resize(image.size, Image.Resampling.BILINEAR)
            resized.save(output / f"{number}.png", compress_level=1)

    return run


def main() -> None:
    """Print the CPU milliseconds of a photo in both loops, and the median of their ratios."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.selfie")
    parser.add_argument("model", type=Path)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--checkpoint", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = find_photos(absolute_uri(options.photos)).table["uri"].to_pylist()[:BLOCK_PHOTOS]
    number_format = fastest_number_format(torch.device("cpu"))
    ratios = []
    with tempfile.TemporaryDirectory() as output:
        size, calls = block_calls(absolute_uri(options.photos), options.checkpoint, "none", number_format, output)
        selfie = selfie_loop(options.model, photos, Path(output))
        for number in range(ROUNDS + 1):
            costs = [cpu_milliseconds(selfie) / len(photos), cpu_milliseconds(calls[number % len(calls)]) / size]
            if number:  # the first round warms up
                ratios.append(costs[0] / costs[1])
                print(f"selfie segmenter {costs[0]:.2f}, predict's functions {costs[1]:.2f} CPU-ms a photo")
    print(f"median of the ratios: {statistics.median(ratios):.2f}")


def cpu_milliseconds(call: Callable[[], object]) -> float:
    """Return the CPU milliseconds of a call."""
    began = time.process_time()
    call()
    return 1000 * (time.process_time() - began)


if __name__ == "__main__":
    main()

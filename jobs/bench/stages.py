"""CPU cost of each stage of the jobs other than the network, one stage at a time on one core."""

from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory

import torch

from jobs.bench.network import TRAIN_BATCH
from jobs.bench.timing import cpu_ms_per_call
from matting.data import images
from matting.inference.network import Network
from matting.inference.predictor import Predictor
from matting.inference.refine import cutout, guided, squash, upsample
from matting.nn import checkpoint
from matting.nn.augment import augment
from matting.nn.augment_draws import Randomness
from matting.storage import store


def measure_stages(photos: Sequence[str], uri: str, seconds: float) -> dict[str, float]:
    """Return the CPU milliseconds per photo of every stage, by its name in the results table.

    Args:
        photos: URIs of a few photos.
        uri: URI of a checkpoint, whose alphas of these photos are refined and encoded.
        seconds: CPU time for all stages together.
    """
    torch.set_num_threads(1)
    loaded = checkpoint.load(uri)
    network = Network(loaded)
    predictor = Predictor(network, "guided")
    encoded = [store.read_bytes(photo) for photo in photos]
    image = [images.decode_image(data) for data in encoded]
    sizes = [(pixels.shape[1], pixels.shape[0]) for pixels in image]
    squashed = [squash(pixels, *predictor.input_shape(*size)) for pixels, size in zip(image, sizes, strict=True)]
    small = [network.small_alphas(pixels[None])[0] for pixels in squashed]
    alpha = [guided(*both, *size) for both, size in zip(zip(small, image, strict=True), sizes, strict=True)]
    cutouts = [cutout(*both) for both in zip(image, alpha, strict=True)]
    mattes = [images.encode_png(pixels) for pixels in alpha]
    planes = [torch.rand(TRAIN_BATCH, channels, loaded.size, loaded.size) for channels in (3, 1)]
    randomness = Randomness.seeded(0, torch.device("cpu"))
    with TemporaryDirectory() as folder:
        calls: dict[str, Callable[[int], object]] = {
            "read": lambda i: store.read_bytes(photos[i]),
            "decode": lambda i: images.decode_photo(encoded[i], predictor.min_side),
            "squash": lambda i: squash(image[i], *predictor.input_shape(*sizes[i])),
            "interpolate (--refine none)": lambda i: upsample(small[i], *sizes[i]),
            "refine (--refine guided)": lambda i: guided(small[i], image[i], *sizes[i]),
            "foreground colors of a cutout": lambda i: cutout(image[i], alpha[i]),
            "encode a matte, PNG": lambda i: images.encode_png(alpha[i]),
            "encode a cutout, PNG": lambda i: images.encode_png(cutouts[i]),
            "encode a cutout, WebP": lambda i: images.encode_webp(cutouts[i]),
            "write": lambda i: store.write_bytes(f"{folder}/{i}.png", mattes[i]),
            f"augment (a batch of {TRAIN_BATCH})": lambda _: augment(planes[0], planes[1], loaded.size, randomness),
        }
        return {name: cpu_ms_per_call(call, len(photos), seconds / len(calls)) for name, call in calls.items()}

"""Prediction of whole batches on a device: against that of single photos, in mixed sizes, and short of memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from matting.data import images
from matting.data.images import Pixels
from matting.data.synthetic import draw_person
from matting.inference import device_predictor, predictor
from matting.inference.batched import squash_batch, whole_area
from matting.inference.device_predictor import DevicePredictor, PackingPredictor
from matting.inference.network import Network
from matting.inference.predictor import Predictor, Refine
from matting.nn.unet import UNetConfig
from tests.support.host_reads import NoHostReads, without_values
from tests.support.networks import checkpoint_of_eight_people

SIZE = 32
CPU = torch.device("cpu")


class RedNetwork:
    """Network that finds people by their red: alpha is the red channel, fading to the right."""

    size = SIZE
    aspects = (0.75, 1.0)

    def __init__(self, fits: int = 1000) -> None:
        self.calls, self._fits = list[int](), fits

    def small_alphas(self, squashed_BHWC: Pixels) -> Pixels:
        return self.alphas_on_device(torch.from_numpy(squashed_BHWC), 1).numpy()

    def alphas_on_device(self, squashed_BHWC: torch.Tensor, parts: int) -> torch.Tensor:
        self.calls.append(parts)
        if len(squashed_BHWC) > self._fits * parts:
            raise torch.OutOfMemoryError("CUDA out of memory")
        fading = torch.linspace(1, 0.7, squashed_BHWC.shape[2])
        return (squashed_BHWC[..., 0] * fading).round().to(torch.uint8)


@contextmanager
def untimed(_: str) -> Iterator[None]:
    yield


def on_device(network: RedNetwork | Network, refine: Refine) -> PackingPredictor:
    return PackingPredictor(network.size, DevicePredictor(network, refine, CPU).alphas)


def reddish(width: int, height: int, box: tuple[float, float, float, float]) -> Pixels:
    """Draw a red ellipse in a box (left, top, right, bottom in fractions) on a textured blue background."""
    rows, columns = (np.mgrid[:height, :width].T / (height, width)).T + 0.5 / max(height, width)
    left, top, right, bottom = box
    across, down = (2 * columns - left - right) / (right - left), (2 * rows - top - bottom) / (bottom - top)
    alpha = np.clip((1 - np.hypot(across, down)) * 6 + 0.5, 0, 1)[..., None]
    noise = np.random.default_rng(width).normal(0, 5, (height, width, 3))
    image = alpha * (250, 60, 40) + (1 - alpha) * (2, 60, 200) + noise
    return np.rint(image.clip(0, 255)).astype(np.uint8)


LARGE, SMALL, NOBODY = (0.1, 0.1, 0.9, 0.9), (0.55, 0.2, 0.9, 0.6), (2, 2, 2.1, 2.1)
PHOTOS = [
    *(reddish(44, 54, LARGE) for _ in range(3)),
    reddish(44, 54, SMALL),
    reddish(44, 54, NOBODY),
    reddish(200, 90, SMALL),  # wide: another input shape
    reddish(47, 53, LARGE),
    reddish(300, 310, SMALL),
    reddish(20, 29, SMALL),  # smaller than the network's input
    reddish(44, 54, LARGE),
]


def squash_alone(image_HWC: Pixels, width: int, height: int) -> Pixels:
    whole = whole_area(image_HWC.shape, torch.zeros(1))
    return squash_batch(torch.from_numpy(np.ascontiguousarray(image_HWC))[None], whole, width, height)[0].numpy()


@pytest.mark.parametrize("refine", ["none", "guided", "mirrored"])
def test_batches_match_single_photos(refine: Refine, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same rounding of what the network sees leaves only what is wrong in the way of pixels.
    monkeypatch.setattr(predictor, "squash", squash_alone)
    expected = [Predictor(RedNetwork(), refine).alphas([photo])[0] for photo in PHOTOS]
    found = on_device(RedNetwork(), refine).timed_alphas(PHOTOS, [photo.shape[1::-1] for photo in PHOTOS], untimed)
    assert [alpha.shape for alpha in found] == [photo.shape[:2] for photo in PHOTOS]
    assert expected[3].max() > 150
    assert not expected[3][:, :15].any(), "the second pass leaves the rest of the photo empty"
    differences = [np.abs(one.astype(int) - other).ravel() for one, other in zip(found, expected, strict=True)]
    assert max(difference.max() for difference in differences) <= 1
    assert np.mean(np.concatenate(differences)) < 0.01


def test_reduced_photos_get_alphas_of_their_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "squash", squash_alone)
    reduced, sizes = [images.resize(PHOTOS[7], 100, 104), PHOTOS[0]], [(300, 310), (44, 54)]
    alone = Predictor(RedNetwork(), "guided")
    expected = alone.enlarge(alone.predict_small(reduced, sizes), reduced, sizes)
    found = on_device(RedNetwork(), "guided").timed_alphas(reduced, sizes, untimed)
    for alpha, own in zip(found, expected, strict=True):
        assert np.abs(alpha.astype(int) - own).max() <= 1


def test_groups_are_cut_by_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [photo.shape[1::-1] for photo in PHOTOS]
    expected = on_device(RedNetwork(), "guided").timed_alphas(PHOTOS, sizes, untimed)
    monkeypatch.setattr(device_predictor, "MAX_PIXELS_TOGETHER", 2 * 54 * 47)
    for alpha, whole in zip(
        on_device(RedNetwork(), "guided").timed_alphas(PHOTOS, sizes, untimed), expected, strict=True
    ):
        np.testing.assert_array_equal(alpha, whole)


def test_full_device_gets_half_as_many_photos_once() -> None:
    photos, sizes = PHOTOS[:3], [(44, 54)] * 3
    expected = on_device(RedNetwork(), "none").timed_alphas(photos, sizes, untimed)
    network = RedNetwork(fits=2)
    found = on_device(network, "none").timed_alphas(photos, sizes, untimed)
    assert network.calls == [1, 2]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(torch.OutOfMemoryError):
        on_device(RedNetwork(fits=1), "none").timed_alphas(photos, sizes, untimed)


def test_network_predicts_tensors_as_it_does_arrays() -> None:
    trained = checkpoint_of_eight_people(UNetConfig(width=4), SIZE, steps=1, learning_rate=1e-2)
    squashed = np.stack([draw_person(5, number, SIZE, SIZE)[0] for number in range(5)])
    network = Network(trained, number_format="fp32", micro_batch=4)
    for parts in (1, 2):
        found = network.alphas_on_device(torch.from_numpy(squashed), parts)
        np.testing.assert_array_equal(found.numpy(), network.small_alphas(squashed))


# Host reads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refine", ["none", "guided", "mirrored"])
def test_host_reads_nothing_of_a_pass(refine: Refine, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = checkpoint_of_eight_people(UNetConfig(width=4), SIZE, steps=1, learning_rate=1e-2)
    network = Network(trained, number_format="bf16", micro_batch=4)
    network._network.to("meta")
    downloads = list[tuple[int, ...]]()

    def download(tensor: torch.Tensor) -> np.ndarray:
        assert tensor.is_meta
        downloads.append(tuple(tensor.shape))
        if tensor.dtype == torch.uint8:
            return np.zeros(tensor.shape, np.uint8)
        return np.tile([0, 10, 0, 10], (len(tensor), 1))  # people in a corner: a second pass for all

    monkeypatch.setattr(device_predictor, "upload", without_values)
    monkeypatch.setattr(device_predictor, "download", download)
    with NoHostReads() as watch:
        on_device(network, refine).timed_alphas(PHOTOS, [photo.shape[1::-1] for photo in PHOTOS], untimed)
    pixels = sum(photo.shape[0] * photo.shape[1] for photo in PHOTOS)
    assert downloads == [(pixels,), (len(PHOTOS), 4), (pixels,)]
    assert watch.operations > 100


@pytest.mark.parametrize(
    "read",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: tensor.cpu(),
        lambda tensor: tensor[tensor > 0],
        lambda tensor: tensor.nonzero(),
        lambda tensor: torch.zeros_like(tensor, device="cpu").copy_(tensor),
        lambda tensor: tensor.copy_(torch.zeros(4)),
        lambda tensor: tensor + torch.zeros(4),
        lambda tensor: tensor + torch.zeros(4).to(tensor.device),
    ],
)
def test_watch_finds_host_reads(read: Callable[[torch.Tensor], object]) -> None:
    with NoHostReads():
        tensor = torch.empty(4, device="meta") + 1
        with pytest.raises(AssertionError, match=r"the host reads|two devices|another device"):
            read(tensor)

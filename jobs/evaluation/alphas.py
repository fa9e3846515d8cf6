"""Predictions to score: alphas that a checkpoint predicts, or that another system left in files."""

from collections import Counter
from collections.abc import Iterable

from matting.data import images
from matting.inference.network import Network
from matting.inference.predictor import Predictor, Refine
from matting.messages import normalized, tell_apart
from matting.nn import checkpoint
from matting.storage import store
from matting.storage.errors import NotFoundError
from matting.storage.uri import absolute_uri, join_uri


class CheckpointAlphas:
    """Alphas that a checkpoint predicts in float32, so that metrics do not depend on the hardware.

    Args:
        uri: URI of the checkpoint folder.
        refine: Method of enlarging alphas to the photo's size.
    """

    def __init__(self, uri: str, refine: Refine) -> None:
        self.uri = uri
        loaded = checkpoint.load(absolute_uri(uri))
        self.source = f"{uri}, SHA-256 {loaded.identity[:16]}…, refine {refine}"
        self._predictor = Predictor(Network(loaded, number_format="fp32"), refine)

    def __call__(self, key: str, image_HWC: images.Pixels) -> images.Pixels:  # noqa: ARG002 - FileAlphas needs it
        """Predict alpha_HW at the image's size."""
        return self._predictor.alphas([image_HWC])[0]


class FileAlphas:
    """Alphas of another system, read from files; see :func:`find_predictions`.

    Args:
        uri: URI of the folder of files.
        keys: Keys of all photos of the dataset.

    Raises:
        StorageError: The folder does not exist or is empty.
    """

    def __init__(self, uri: str, keys: Iterable[str]) -> None:
        self._uri = self.source = absolute_uri(uri)
        self._names = find_predictions(keys, [file.key for file in store.list_files(self._uri)])

    def __call__(self, key: str, image_HWC: images.Pixels) -> images.Pixels:  # noqa: ARG002 - CheckpointAlphas needs it
        """Read alpha_HW, of any size.

        Raises:
            BadImage: There is no file for the key, or it is not a matte.
        """
        if key not in self._names:
            shown = tell_apart(list(dict.fromkeys(prediction_names(key))))
            raise images.BadImage(f"no prediction; looked for {shown}, and took none that could be another photo's too")
        try:
            return images.decode_alpha(store.read_bytes(join_uri(self._uri, self._names[key])))
        except NotFoundError as error:
            raise images.BadImage(f"its prediction was listed, and is gone: {error}") from error


def find_predictions(keys: Iterable[str], files: Iterable[str]) -> dict[str, str]:
    """Return the prediction of each photo: the first of its `prediction_names` that exists and is no other photo's too.

    Names are compared as they are, then in Unicode's composed form. The name made of the whole key needs not be unique.

    Args:
        keys: Keys of the photos.
        files: Paths of the predictions below their folder.
    """
    keys = list(keys)
    files = list(files)
    stored = {normalized(file): file for file in files} | {file: file for file in files}
    uses = Counter(name for key in keys for name in dict.fromkeys(prediction_names(key)))
    found = {}
    for key in keys:
        for number, name in enumerate([f"{key}.png", *prediction_names(key)]):
            if name in stored and (number <= 1 or uses[name] == 1):
                found[key] = stored[name]
                break
    return found


def prediction_names(key: str) -> list[str]:
    """Return the names that a photo's prediction may have, best first.

    For images/a.jpg these are images/a.jpg.png, images/a.png, a.jpg.png and a.png, since systems may drop the folders,
    and the photo's suffix.
    """
    parts = normalized(key).split("/")
    paths = ["/".join(parts[start:]) for start in range(len(parts))]
    return [name for path in paths for name in (f"{path}.png", f"{path.rpartition('.')[0] or path}.png")]


Alphas = CheckpointAlphas | FileAlphas


def open_alphas(checkpoint_uri: str | None, predictions: str | None, refine: Refine, keys: Iterable[str]) -> Alphas:
    """Return the predictions to score: a checkpoint's if there is one, or else those in a folder."""
    return CheckpointAlphas(checkpoint_uri, refine) if checkpoint_uri else FileAlphas(str(predictions), keys)

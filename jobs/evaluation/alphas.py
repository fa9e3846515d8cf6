"""Predictions to score: alphas that a checkpoint predicts, or that another system left in files."""

from matting.data import images
from matting.inference.network import Network
from matting.inference.predictor import Predictor, Refine
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
    """Alphas of another system, read from files.

    Args:
        uri: URI of the folder of files.

    Raises:
        StorageError: The folder does not exist or is empty.
    """

    def __init__(self, uri: str) -> None:
        self._uri = self.source = absolute_uri(uri)
        store.list_files(self._uri)

    def __call__(self, key: str, image_HWC: images.Pixels) -> images.Pixels:  # noqa: ARG002 - CheckpointAlphas needs it
        """Read alpha_HW, of any size.

        Raises:
            BadImage: There is no file for the key, or it is not a matte.
        """
        names = (f"{key}.png", f"{key.rpartition('.')[0]}.png")
        for name in names:
            try:
                return images.decode_alpha(store.read_bytes(join_uri(self._uri, name)))
            except NotFoundError:
                continue
        raise images.BadImage(f"no prediction; looked for {' and '.join(names)}")


Alphas = CheckpointAlphas | FileAlphas

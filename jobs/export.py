"""Hand a trained network to programs that know neither Ray nor torch: a checkpoint's files, and the network as ONNX.

    <output>/model.onnx            image, float32 (batch, 3, height, width), RGB in [0, 1]
                                   -> alpha, float32 (batch, 1, height, width), in [0, 1]
    <output>/model.safetensors, config.json, metrics.json    as they are, so that the folder is a checkpoint too

model.onnx is self-contained, has every BatchNorm folded, and takes any batch, height and width. The network was trained
on photos squashed to size × size pixels and is at its best there, but for photos far wider or taller than those; the
file's text says which. Its metadata has the `size`, and the checkpoint's identity as `model_sha256`. All happens in
this process: no cluster is started.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jobs import cluster, config
from matting import checkpoint, storage
from matting.checkpoint import Checkpoint
from matting.predictor import folded, input_shapes
from matting.unet import UNet, alpha_of

OPSET = 18  # of 2022: the oldest that torch's exporter is written for, so that most runtimes read it

USE = """\
image: RGB in [0, 1], float32 (batch, 3, height, width); squash photos to {squashed} first. \
alpha: in [0, 1], float32 (batch, 1, height, width)."""

EXAMPLE = """\
With `import numpy, onnxruntime, PIL.Image` and an upright photo:
  photo = PIL.Image.open("photo.jpg").convert("RGB").resize(({size}, {size}), PIL.Image.Resampling.BILINEAR)
  image = numpy.asarray(photo, "float32").transpose(2, 0, 1)[None] / 255
  (alpha,) = onnxruntime.InferenceSession("model.onnx").run(["alpha"], {{"image": image}})"""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a checkpoint as ONNX.

    Args:
        checkpoint: URI of a checkpoint folder.
        output: URI of the folder for model.onnx and the checkpoint's own files.
    """

    checkpoint: str
    output: str


def squashed(loaded: Checkpoint) -> str:
    """To what photos are to be squashed for a network, in words."""
    (_, (width, height)), *wider = input_shapes(loaded.size, loaded.aspects)
    others = ", ".join(f"of {least:.2f} to {width}×{height}" for least, (width, height) in wider)
    return f"{width}×{height}" + (f", or from a width over height {others}" if others else "")


class AlphaOfAnySize(nn.Module):
    """image_BCHW in [0, 1] -> alpha_B1HW in [0, 1], by the same operations whatever the size.

    The network itself pads in one of several ways, chosen by the size; a graph has no such choice.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self._network = network
        self._multiple = network.config.multiple

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        rows, columns = padded_places(height, self._multiple), padded_places(width, self._multiple)
        alpha = alpha_of(self._network(image.index_select(2, rows).index_select(3, columns)))
        return alpha.narrow(2, 0, height).narrow(3, 0, width)


def padded_places(side: int, multiple: int) -> Tensor:
    """For each place of a side padded as :func:`matting.unet.pad_to_multiple` does, the place that it is a copy of."""
    places = torch.arange(multiple * ((side + multiple - 1) // multiple))
    reflected = side - 1 - (side - 1 - places).abs()
    return torch.where(reflected[-1] >= 0, reflected, places.clamp(max=side - 1))


def to_onnx(loaded: Checkpoint) -> bytes:
    """The contents of model.onnx. Raises ConfigError where the packages for it are not installed."""
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter is written in it
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError as error:
        raise config.ConfigError(
            f"Exporting needs packages that are not installed ({error}). In the project's folder: "
            "pip install -e '.[export]'"
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here uses
    with warnings.catch_warnings():
        # torch copies a structure of its own that it has deprecated itself
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        program = torch.onnx.export(
            AlphaOfAnySize(folded(loaded.model)).eval(),
            (torch.rand(2, 3, 21, 30),),  # of any size but 0 and 1, which would stay constants
            input_names=["image"],
            output_names=["alpha"],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # every node's line of source, with paths of this machine
    program.model.doc_string = program.model.graph.doc_string = USE.format(squashed=squashed(loaded))
    program.model.metadata_props.update(model_sha256=loaded.identity, size=str(loaded.size))
    onnx.checker.check_model(program.model_proto, full_check=True)
    return program.model_proto.SerializeToString()


def main(argv: Sequence[str]) -> None:
    """Convert, check, write, and say how to use it."""
    options = config.parse(ExportConfig, argv)
    source, output = cluster.absolute(options.checkpoint), cluster.absolute(options.output)
    loaded = checkpoint.load(source)
    storage.check_writable(output)
    storage.write_bytes(storage.join(output, "model.onnx"), to_onnx(loaded))
    for name in ("model.safetensors", "config.json", "metrics.json"):  # the last one makes it a whole checkpoint
        storage.write_bytes(storage.join(output, name), storage.read_bytes(storage.join(source, name)))
    print(
        f"Wrote {output}/model.onnx (opset {OPSET}, checkpoint {loaded.identity[:16]}…) and the checkpoint's own files."
    )
    print(USE.format(squashed=squashed(loaded)))
    print(EXAMPLE.format(size=loaded.size))


if __name__ == "__main__":
    cluster.run(main)

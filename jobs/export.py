"""Export a trained network for programs without Ray and torch: as ONNX, in a folder that is a checkpoint too.

    <output>/model.onnx            image, float32 (batch, 3, height, width), RGB in [0, 1]
                                   -> alpha, float32 (batch, 1, height, width), in [0, 1]
    <output>/model.safetensors, config.json, metrics.json    copies of the checkpoint's files

model.onnx is self-contained, has every BatchNorm folded, and takes any batch, height and width. The network is at its
best on photos squashed to the shapes that the file's text names: size × size pixels, or rectangles for photos much
wider or taller than those of training. The file's metadata has the `size`, and the checkpoint's identity as
`model_sha256`. Everything happens in this process; no cluster is started.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jobs.common import config
from jobs.common.cli import run_job
from matting.inference.input_shapes import input_shapes
from matting.inference.network import fold_batchnorm
from matting.nn import checkpoint
from matting.nn.checkpoint import Checkpoint
from matting.nn.unet import UNet, alpha_of
from matting.storage import store
from matting.storage.uri import absolute_uri, join_uri

OPSET = 18  # the oldest version (2022) that torch's exporter is written for, so that most runtimes read the file

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
    """Return the shapes to which photos are squashed for a network, in words."""
    (_, (width, height)), *wider = input_shapes(loaded.size, loaded.aspects)
    others = ", ".join(f"of {least:.2f} to {width}×{height}" for least, (width, height) in wider)
    return f"{width}×{height}" + (f", or from a width over height {others}" if others else "")


class AlphaOfAnySize(nn.Module):
    """Network with the same operations for every size: image_BCHW in [0, 1] -> alpha_B1HW in [0, 1].

    UNet chooses among several ways of padding by the size, which the graph of an ONNX file cannot.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self._network = network
        self._multiple = network.config.multiple

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        rows, columns = padded_indices(height, self._multiple), padded_indices(width, self._multiple)
        alpha = alpha_of(self._network(image.index_select(2, rows).index_select(3, columns)))
        return alpha.narrow(2, 0, height).narrow(3, 0, width)


def padded_indices(side: int, multiple: int) -> Tensor:
    """Return indices that pad a side, by indexing, as :func:`matting.nn.unet.pad_to_multiple` does."""
    indices = torch.arange(multiple * ((side + multiple - 1) // multiple))
    reflected = side - 1 - (side - 1 - indices).abs()
    return torch.where(reflected[-1] >= 0, reflected, indices.clamp(max=side - 1))


def to_onnx(loaded: Checkpoint) -> bytes:
    """Convert a checkpoint to the contents of model.onnx.

    Raises:
        ConfigError: The packages for it are not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter is written in it
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError as error:
        raise config.ConfigError(
            f"Exporting needs packages that are not installed ({error}). In the project's folder: "
            "pip install -e '.[export]'"
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of missing torchvision, which is not used
    with warnings.catch_warnings():
        # torch's exporter uses a structure that torch has deprecated
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        program = torch.onnx.export(
            AlphaOfAnySize(fold_batchnorm(loaded.model)).eval(),
            (torch.rand(2, 3, 21, 30),),  # any sizes but 0 and 1, which would become constants of the graph
            input_names=["image"],
            output_names=["alpha"],
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # source lines, with paths of this machine
    program.model.doc_string = program.model.graph.doc_string = USE.format(squashed=squashed(loaded))
    program.model.metadata_props.update(model_sha256=loaded.identity, size=str(loaded.size))
    onnx.checker.check_model(program.model_proto, full_check=True)
    contents: bytes = program.model_proto.SerializeToString()
    return contents


def main(argv: Sequence[str]) -> None:
    """Convert a checkpoint, write it, and print how to use it."""
    options = config.parse(ExportConfig, argv)
    source, output = absolute_uri(options.checkpoint), absolute_uri(options.output)
    loaded = checkpoint.load(source)
    store.check_writable(output)
    store.write_bytes(join_uri(output, "model.onnx"), to_onnx(loaded))
    for name in ("model.safetensors", "config.json", "metrics.json"):  # last: it marks a whole checkpoint
        store.write_bytes(join_uri(output, name), store.read_bytes(join_uri(source, name)))
    print(
        f"Wrote {output}/model.onnx (opset {OPSET}, checkpoint {loaded.identity[:16]}…) and the checkpoint's own files."
    )
    print(USE.format(squashed=squashed(loaded)))
    print(EXAMPLE.format(size=loaded.size))


if __name__ == "__main__":
    run_job(main)

"""Study: fingerprints of decoded photos, predicted mattes, training steps and packed parts, to compare two versions.

    python -m tests.studies.fingerprint before.json --checkpoint C --photos P --pairs RAW --masks RAW    old version
    python -m tests.studies.fingerprint after.json … --beside before.json    new version: prints the differences

    decoding   photos, and drawn images of every EXIF orientation         -> pixels
    mattes     photos, with every number format and way of refinement     -> alphas, cutouts, facts for the ledger
    training   20 steps of every recipe, on pairs of the first dataset    -> losses, weights, validation scores
    packing    raw pairs; raw pairs with masks, which are softened        -> parts, and the rows in them

The digests are SHA-256. They can be compared on one machine, with the same versions of torch and Pillow; torch uses one
thread. Nothing is written but the output file and temporary folders.
"""

import argparse
import hashlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from jobs import pack
from jobs.common import config
from jobs.training.config import TrainConfig, presets
from matting.data import images
from matting.data.dataset import open_dataset
from matting.data.photos import find_photos
from matting.data.rows import Example
from matting.inference.network import Network
from matting.inference.predictor import Predictor, Refine
from matting.nn import checkpoint
from matting.nn.precision import NumberFormat, micro_batch_size
from matting.nn.schedule import Budget
from matting.nn.trainer import Trainer
from matting.nn.unet import UNet
from matting.results.pipeline import PhotoPipeline, PredictionSettings

CPU = torch.device("cpu")
STEPS = 20
REDUCED_SIDE = 32
SOFTEN_OPTIONS = ["--side", "160", "--soften", "2"]
FACTS = ("status", "error", "width", "height", "coverage", "confidence")  # columns of the ledger
EXIF_ORIENTATION = 0x0112


def decoding(options: argparse.Namespace) -> dict[str, str]:
    """Return the size of each photo, and the digest of its pixels decoded in full and reduced."""
    paths = files_below(options.photos)[: options.limit]
    files = {str(path.relative_to(options.photos)): path.read_bytes() for path in paths}
    found = {}
    for name, data in {**files, **oriented_images()}.items():
        photo = images.decode_photo(data, REDUCED_SIDE)
        reduced, width, height = photo.image_HWC, photo.width, photo.height
        decoded = [images.decode_image(data), reduced]
        content = b"".join(str(image.shape).encode() + image.tobytes() for image in decoded)
        found[name] = f"{width}×{height} {sha256(content)}"
    return found


def oriented_images() -> dict[str, bytes]:
    """Draw a small image without any symmetry; encode it in each format that holds EXIF data, in each orientation."""
    rows, columns = np.mgrid[:80, :120].astype(np.uint8)
    image = Image.fromarray(np.stack([3 * rows, 2 * columns, rows + columns], axis=2))
    found = {}
    for kind, orientation in product(("JPEG", "PNG", "WebP", "TIFF"), range(1, 9)):
        exif, buffer = Image.Exif(), io.BytesIO()
        exif[EXIF_ORIENTATION] = orientation
        tags = {EXIF_ORIENTATION: orientation} if kind == "TIFF" else {}
        image.save(buffer, kind, exif=exif.tobytes(), tiffinfo=tags)
        found[f"drawn/{kind}-{orientation}"] = buffer.getvalue()
    return found


def mattes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the digests of a checkpoint's weights, and of its predictions by number format and refinement."""
    loaded = checkpoint.load(options.checkpoint)
    photos = find_photos(options.photos).table.slice(0, options.limit)
    photos = photos.append_column("outputs", pa.nulls(len(photos), pa.list_(pa.string())))
    digests = weight_digests(loaded.model.state_dict())
    found: dict[str, Any] = {"checkpoint": {"size": loaded.size, "aspects": loaded.aspects, **digests}}
    for number_format in get_args(NumberFormat):
        network = Network(loaded, CPU, number_format)
        for refine in get_args(Refine):
            settings = PredictionSettings(("alpha", "cutout"), "png", refine, "files", number_format)
            found[f"{number_format} {refine}"] = prediction_digests(network, settings, photos)
    network = Network(loaded, CPU, "int8")
    settings = PredictionSettings(("cutout",), "webp", "guided", "files", "int8")
    found["int8 guided webp"] = prediction_digests(network, settings, photos)
    return found


def prediction_digests(network: Network, settings: PredictionSettings, photos: pa.Table) -> dict[str, Any]:
    """Predict all photos as one block; return digests by photo, and one digest over all photos for each kind."""
    with tempfile.TemporaryDirectory() as folder:
        predictor = Predictor(network, settings.refine)
        pipeline = PhotoPipeline(folder, settings, "run", "model", predictor, micro_batch_size(CPU))
        rows, _ = pipeline.handle(photos, 0)
        found = {}
        for row in sorted(rows, key=lambda row: str(row["key"])):
            facts = json.dumps([row[name] for name in FACTS]).encode()
            files = {path.partition("/")[0]: sha256(Path(folder, path).read_bytes()) for path in row["outputs"]}
            found[row["key"]] = {"facts": sha256(facts), **files}
    return {
        "failed": sum(row["status"] == "failed" for row in rows),
        **{kind: combine(photo.get(kind, "") for photo in found.values()) for kind in ("facts", *settings.write)},
        "photos": found,
    }


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Train each recipe in fp32 and in the machine's precision, and one recipe with photos as backgrounds."""
    recipes = sorted(path.stem for path in config.CONFIGS.glob("*.yaml"))
    cases = [*product(recipes, ("fp32", "auto"), (False,)), ("matting", "fp32", True)]
    with tempfile.TemporaryDirectory() as folder:
        pack.main(["--pairs", options.pairs.partition(",")[0], "--output", folder])
        return {
            f"{recipe} {precision}{' backgrounds' if with_backgrounds else ''}": training_digests(
                folder, recipe, precision, with_backgrounds
            )
            for recipe, precision, with_backgrounds in cases
            if not options.recipes or recipe in options.recipes.split(",")
        }


def training_digests(packed: str, recipe: str, precision: str, with_backgrounds: bool) -> dict[str, Any]:
    """Train a whole run of 20 steps; return its losses, its scores, and digests of weights and optimizer state."""
    argv = ["--recipe", recipe, "--data", packed, "--precision", precision]
    options = config.parse(TrainConfig, argv, presets)
    splits = open_dataset(options.data, options).splits
    train, val = (list(splits[name].examples(options.size)) for name in ("train", "val"))
    torch.manual_seed(options.seed)
    backgrounds = next(batched(val, len(val)))["image"][:, ::-1] if with_backgrounds else None
    trainer = Trainer(UNet(options.network()), options.training(), CPU, backgrounds)
    budget = Budget(epochs=1, samples=STEPS * options.recipe_batch)
    losses: list[str] = []
    batches = islice(batched(cycle(train), options.recipe_batch), STEPS)
    trainer.train_epoch(batches, budget, lambda step: losses.append(step.loss.hex()))
    state = trainer.state()
    return {
        "losses": losses,
        "model": weight_digests(trainer.model.state_dict()),  # the moving average, if the recipe has one
        "learning": weight_digests(state["unaveraged"] or trainer.model.state_dict()),
        "optimizer": weight_digests(optimizer_tensors(state["optimizer"]["state"])),
        "scores": {score.key: [value.hex() for value in score[1:]] for score in trainer.validate(batched(val, 8))},
    }


def batched(examples: Iterable[Example], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches as the trainer takes them; the last one may be smaller."""
    examples = iter(examples)
    while batch := list(islice(examples, size)):
        yield {name: np.array([getattr(example, name) for example in batch]) for name in ("key", "image", "alpha")}


def optimizer_tensors(state: Mapping[int, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the tensors of the optimizer's state, named by the parameter's number and the kind of state."""
    return {f"{number:04d} {name}": tensor for number, row in state.items() for name, tensor in row.items()}


def packing(options: argparse.Namespace) -> dict[str, Any]:
    """Pack each dataset; return the digests of its parts."""
    cases = [*product(options.pairs.split(","), ([],)), *product(options.masks.split(","), (SOFTEN_OPTIONS,))]
    return {" ".join([uri.rpartition("/")[2], *arguments]): part_digests(uri, arguments) for uri, arguments in cases}


def part_digests(pairs: str, arguments: list[str]) -> dict[str, dict[str, str]]:
    """Pack one dataset; return the digests of each part's file, and of its rows, which exclude the part's footer."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        pack.main(["--pairs", pairs, "--output", folder, *arguments])
        for path in files_below(folder):
            if path.suffix == ".parquet":
                rows = [list(row.values()) for row in pq.read_table(path).to_pylist()]
                found[path.name] = {"file": sha256(path.read_bytes()), "rows": sha256(repr(rows).encode())}
    return found


def weight_digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the digest of each tensor, one of all floating-point tensors, and one of all tensors.

    The latter two stay the same when tensors are renamed.
    """
    each = {name: sha256(tensors[name].numpy().tobytes()) for name in sorted(tensors)}
    floats = [each[name] for name in each if tensors[name].is_floating_point()]
    return {"floats": combine(sorted(floats)), "all": combine(sorted(each.values())), "each": each}


def sha256(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def combine(digests: Iterable[str]) -> str:
    """Return one digest of several."""
    return sha256("\n".join(digests).encode())


def files_below(folder: str) -> list[Path]:
    """Return all files of a folder and its subfolders, sorted."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def differences(before: Any, after: Any, place: Sequence[str] = ()) -> Iterator[str]:
    """Yield a line for each value that differs between two fingerprints, or that only one of them has."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [name for name in before if name in after]:
            yield from differences(before[name], after[name], (*place, name))
        yield from (f"only in one: {' / '.join((*place, name))}" for name in sorted(before.keys() ^ after.keys()))
    elif before != after:
        yield "differs: " + " / ".join(place)


SECTIONS = {"decoding": decoding, "mattes": mattes, "training": training, "packing": packing}


def main() -> int:
    """Compute a fingerprint, write it, and compare it with another one.

    Returns:
        Exit code: 1 if the two fingerprints differ, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.studies.fingerprint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", help="JSON file to write")
    parser.add_argument("--checkpoint", help="checkpoint folder")
    parser.add_argument("--photos", help="folder of photos")
    parser.add_argument("--pairs", help="folders of raw pairs, separated by commas")
    parser.add_argument("--masks", help="folders of raw pairs with binary masks, separated by commas")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="sections to compute, separated by commas")
    parser.add_argument("--limit", type=int, help="largest number of photos; by default all")
    parser.add_argument("--recipes", help="recipes to train, separated by commas; by default all")
    parser.add_argument("--beside", help="JSON file of another fingerprint; exits with 1 if it differs")
    options = parser.parse_args()
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    text = json.dumps({name: SECTIONS[name](options) for name in options.sections.split(",")}, indent=1) + "\n"
    Path(options.output).write_text(text)
    if not options.beside:
        return 0
    found = list(differences(json.loads(Path(options.beside).read_text()), json.loads(text)))
    print(*found, f"{len(found)} differences", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""export: ONNX with the network's alphas at any batch and size, in a folder that is a checkpoint too."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from jobs import export
from matting.data.synthetic import draw_person
from matting.nn import checkpoint
from matting.nn.unet import UNet, alpha_of
from matting.storage import store
from tests.support.jobs import ROOT, run
from tests.support.networks import UNET_CONFIGS, unet_with_random_batchnorm

SIZE = 32


def save(uri: str, model: UNet) -> None:
    checkpoint.save(uri, model, checkpoint.describe(model, SIZE, {}, {}), {"val_mad": 0.5}, train_state={"epoch": 1})


@pytest.fixture(scope="module", params=UNET_CONFIGS)
def exported(request: pytest.FixtureRequest) -> tuple[UNet, str]:
    """Network, and the URI that it was exported to."""
    model, uri = unet_with_random_batchnorm(request.param), f"memory://export/{request.param}"
    save(uri, model)
    export.main([f"--checkpoint={uri}", f"--output={uri}-onnx"])
    return model, f"{uri}-onnx"


def test_onnx_gives_the_networks_alphas(exported: tuple[UNet, str]) -> None:
    model, uri = exported
    session = onnxruntime.InferenceSession(store.read_bytes(f"{uri}/model.onnx"))
    sizes = [(128, 128), (64, 96), (40, 48), (37, 53), (33, 8), (100, 7), (5, 4), (2, 300), (1, 1)]
    for batch in (1, 3):
        for height, width in sizes:
            image = torch.rand(batch, 3, height, width)
            with torch.no_grad():
                expected = alpha_of(model(image)).numpy()
            (alpha,) = session.run(["alpha"], {"image": image.numpy()})
            assert (alpha.dtype, alpha.shape) == (np.float32, (batch, 1, height, width))
            np.testing.assert_allclose(alpha, expected, rtol=0, atol=1e-5, err_msg=f"{batch} × {height} × {width}")
            assert height * width < 64 or expected.std() > 1e-3  # not saturated: else any two networks would agree


def test_onnx_describes_itself(exported: tuple[UNet, str]) -> None:
    _, uri = exported
    data, loaded = store.read_bytes(f"{uri}/model.onnx"), checkpoint.load(uri)
    proto = onnx.load_from_string(data)
    assert {entry.key: entry.value for entry in proto.metadata_props} == {
        "model_sha256": loaded.identity,
        "size": str(SIZE),
    }
    assert f"squash photos to {SIZE}×{SIZE}" in proto.doc_string
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", export.OPSET)]
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    for value, channels in ((proto.graph.input[0], 3), (proto.graph.output[0], 1)):
        dimensions = value.type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in dimensions] == ["batch", channels, "height", "width"]
    assert str(ROOT).encode() not in data


def test_shapes_for_wide_and_tall_photos_are_named() -> None:
    uri, model = "memory://export/shapes", unet_with_random_batchnorm("light")
    config = checkpoint.describe(model, 160, {}, {"aspects": [0.75, 1.0]})
    checkpoint.save(uri, model, config, {})
    assert export.squashed(checkpoint.load(uri)) == (
        "96×192, or from a width over height of 0.46 to 128×192, of 0.54 to 160×160, of 1.20 to 192×128, "
        "of 1.40 to 192×96"
    )


def run_example(output: str, folder: Path) -> np.ndarray:
    """Run the printed example, in a folder with photo.jpg and model.onnx. Returns its alpha."""
    lines = [line.strip() for line in output.splitlines() if line.startswith("  ")]
    assert len(lines) == 3
    save_alpha = 'numpy.save("alpha.npy", alpha)'
    code = "\n".join(["import numpy, onnxruntime, PIL.Image", *lines, save_alpha])
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return np.load(folder / "alpha.npy")


@pytest.mark.slow
def test_printed_example_works(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nothing answers there, so joining a cluster would fail
    folder = tmp_path / "folder"
    save(str(tmp_path / "best"), unet_with_random_batchnorm("layer"))
    save(f"{bucket}/best", unet_with_random_batchnorm("layer"))
    code, output = run("export", "--checkpoint", str(tmp_path / "best"), "--output", str(folder))
    assert code == 0, output
    assert len(output.splitlines()) == 6  # only the job's own lines
    export.main([f"--checkpoint={bucket}/best", f"--output={bucket}/folder"])
    assert capsys.readouterr().out == output.replace(str(folder), f"{bucket}/folder")

    names = ["config.json", "metrics.json", "model.onnx", "model.safetensors"]
    for uri in (str(folder), f"{bucket}/folder"):
        assert [file.key for file in store.list_files(uri)] == names
        for name in names:
            assert store.read_bytes(f"{uri}/{name}") == store.read_bytes(f"{folder}/{name}")

    photo = Image.fromarray(draw_person(0, 0, 60, 80)[0])
    photo.save(folder / "photo.jpg")
    alpha = run_example(output, folder)
    squashed = np.array(Image.open(folder / "photo.jpg").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    with torch.no_grad():
        network = checkpoint.load(str(folder)).model
        expected = alpha_of(network(torch.from_numpy(squashed).permute(2, 0, 1)[None] / 255)).numpy()
    np.testing.assert_allclose(alpha, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named(package: str, tmp_path: Path) -> None:
    save(str(tmp_path / "best"), unet_with_random_batchnorm("layer"))
    code = f"import sys, runpy; sys.modules[{package!r}] = None; runpy.run_module('jobs.export', run_name='__main__')"
    arguments = [f"--checkpoint={tmp_path / 'best'}", f"--output={tmp_path / 'folder'}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert package in done.stderr
    assert "pip install -e '.[export]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "folder").iterdir())

"""The wheel: it holds `matting` alone, and its command mattes a photo in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from matting.data import images
from matting.data.synthetic import draw_person
from matting.nn import checkpoint
from matting.nn.unet import UNet, UNetConfig
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The wheel, built from a copy of the sources, since setuptools leaves files beside them."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("matting", "jobs", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(sources)], check=True)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        ".",
    ]
    subprocess.run(build, cwd=sources, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """The scripts folder of an environment with the wheel, and this environment's dependencies."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin/python")
    install = [python, "-I", "-m", "pip", "install", "--no-deps", str(wheel)]  # it must not see the checkout's metadata
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Without the .pth files of this environment, one of which leads to the checkout.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def test_wheel_holds_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"matting", f"{wheel.name.rpartition('-py3')[0]}.dist-info"}
    assert any(name.endswith(".j2") for name in names)


def test_installed_command_mattes_a_photo(installed: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=4, depth=2)).eval()
    checkpoint.save(str(tmp_path / "best"), model, checkpoint.describe(model, 32, {}, {}), {})
    (tmp_path / "photo.jpg").write_bytes(images.encode_jpeg(draw_person(0, 0, 60, 80)[0]))
    command = [str(installed / "matting"), "photo.jpg", "-o", "cutout.png", "--checkpoint", "best"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, cwd=tmp_path, check=True, env=environment)
    assert images.image_size((tmp_path / "cutout.png").read_bytes()) == (60, 80)

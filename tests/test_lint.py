"""The project is as its linter, its formatter and its type checker want it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def check(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_linter() -> None:
    check("ruff", "check", "--no-cache")


def test_formatter() -> None:
    check("ruff", "format", "--check", "--diff", "--no-cache")


def test_types(pytestconfig: pytest.Config) -> None:
    # pytest's cache and not a temporary folder: from nothing it takes a minute, most of it for reading torch.
    check("mypy", "--cache-dir", str(pytestconfig.cache.mkdir("mypy")))

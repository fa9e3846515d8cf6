"""requirements.lock: the versions that CI installs meet the needs of the project, the image and submitted jobs."""

import tomllib
from collections.abc import Iterator

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT


def locked_versions() -> dict[str, set[str]]:
    """Return the versions of every package in the lock; several where they depend on the Python or the platform."""
    versions: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        locked = Requirement(line)
        versions.setdefault(canonicalize_name(locked.name), set()).add(str(locked.specifier).removeprefix("=="))
    return versions


def requirements() -> Iterator[tuple[str, str]]:
    """Yield each requirement of the project, the image and the jobs' environment, with its file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for lines in (project["dependencies"], *project["optional-dependencies"].values()):
        yield from (("pyproject.toml", line) for line in lines if not line.startswith("matting["))
    for line in (ROOT / "infra/requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            yield "infra/requirements.txt", line
    for line in yaml.safe_load((ROOT / "runtime_env.yaml").read_text())["pip"]["packages"]:
        yield "runtime_env.yaml", line


@pytest.mark.parametrize(("file", "line"), list(requirements()))
def test_locked_version_meets_the_requirement(file: str, line: str) -> None:
    requirement = Requirement(line)
    versions = locked_versions()[canonicalize_name(requirement.name)]
    assert any(requirement.specifier.contains(version) for version in versions), f"{file}: {line}; locked: {versions}"

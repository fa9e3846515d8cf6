"""Documents: links resolve, tables match their records, and the README keeps to its size."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fsspec.registry import known_implementations

from matting.data import images
from matting.data.synthetic import draw_person
from matting.nn import checkpoint
from matting.nn.unet import UNet, UNetConfig
from tests.studies import tables
from tests.support.paths import ROOT

DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") and part != ".github" for part in path.relative_to(ROOT).parts)
)
README = ROOT / "README.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")


def without_code(document: Path) -> str:
    return re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)


def anchors(document: Path) -> set[str]:
    text = without_code(document)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


def broken_links(document: Path) -> Iterator[str]:
    for link in LINK.findall(without_code(document)):
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = (document.parent / place).resolve() if place else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_anchors_resolve(document: Path) -> None:
    assert list(broken_links(document)) == []


@pytest.mark.parametrize("document", tables.DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_of_their_records(document: Path) -> None:
    assert tables.filled(document) == document.read_text(), "run python -m tests.studies.tables"


def test_readme_fits_on_a_few_screens() -> None:
    assert len(README.read_text().splitlines()) <= 200
    assert README.stat().st_size <= 12_000


def test_readme_has_dates_in_tables_only() -> None:
    text = re.sub(r"<!-- table .*?<!-- end -->", "", README.read_text(), flags=re.DOTALL)
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", text)


def test_readme_has_the_command_that_ci_runs() -> None:
    assert ".ci/check" in README.read_text().partition("<!-- tests -->")[2]
    assert ".ci/check" in (ROOT / ".ci/run").read_text()


def test_log_entries_have_six_lines_at_most() -> None:
    for entry in (ROOT / "jobs/configs/LOG.md").read_text().split("\n## ")[1:]:
        lines = [line for line in entry.splitlines()[1:] if line]
        assert len(lines) <= 6, entry
        assert re.match(r"20\d\d-\d\d-\d\d · ", entry)


def test_stores_of_the_guide_have_their_packages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    guide = (ROOT / "jobs/README.md").read_text()
    for scheme, extra in {"gs": "gcs", "az": "azure", "abfs": "azure"}.items():
        assert f"`{scheme}://…`" in guide
        assert f"pip install -e '.[{extra}]'" in guide
        package = known_implementations[scheme]["class"].partition(".")[0]
        assert f"`{package}`" in guide
        assert [requirement.partition(">=")[0] for requirement in extras[extra]] == [package]


def test_library_guide_examples_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = UNet(UNetConfig(width=4, depth=2)).eval()
    checkpoint.save(str(tmp_path / "runs/first/best"), model, checkpoint.describe(model, 32, {}, {}), {})
    (tmp_path / "photo.jpg").write_bytes(images.encode_jpeg(draw_person(0, 0, 60, 80)[0]))
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "matting/README.md").read_text(), re.DOTALL)
    shapes = "print(alpha.shape, rgba.shape)"
    command = [sys.executable, "-c", "\n".join([*examples, shapes])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert ran.stdout == "(80, 60) (80, 60, 4)\n", ran.stderr


def test_benchmark_becomes_a_record() -> None:
    figures = {"predict, a, none": {"unit": "photos/s", "median": 2.0, "values": [1.0, 2.0, 4.0]}}
    report = {"began": "2030-01-02T03:04", "command": "c", "figures": figures, "ratios": {"predict, a, none / b": 0.5}}
    record = tables.speed_record(report, "m")
    assert record["rows"][0] == ["predict, a, none", [1.0, 2.0, 4.0], "photos/s", "0.50 × b"]
    assert "| predict, a, none | 2.0 (1.0–4.0) | photos/s | 0.50 × b |" in tables.brief_table(record)


def test_scores_of_seeds_replace_their_row() -> None:
    old = {"rows": [["`r`", 30, "test", 1, 2, 3, 4, 5], ["`s`", 30, "test", 1, 2, 3, 4, 5]]}
    summaries = [{"mad": mad, "mse": 1.0, "grad": 2.0, "conn": 3.0, "iou": 0.5} for mad in (7.0, 9.0)]
    rows = tables.with_scores(old, ["`r`", "30", "test"], summaries)["rows"]
    assert rows == [old["rows"][1], ["`r`", "30", "test", [7.0, 9.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [0.5, 0.5]]]

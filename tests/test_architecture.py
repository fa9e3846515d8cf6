"""The house rules of the design, read from the source: who may import whom, and who must not know what."""

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("matting", "jobs")

SHARED_JOBS_MODULES = {
    "jobs.config",
    "jobs.cluster",
    "jobs.streams",
    "jobs.material",
    "jobs.recipe",
    "jobs.worker",
    "jobs.runs",
    "jobs.blocks",
    "jobs.outcome",
    "jobs.actors",
    "jobs.telemetry",
    "jobs.tracking",
    "jobs.measure",
    "jobs.findings",
    "jobs.processes",
    "jobs.workload",
    "jobs.idle",
}

# What a module must not know, not even through what it imports. A name covers what is below it.
LIBRARY_KNOWS_NOT = ("ray", "jobs", "jsonargparse")
COMMAND_LINE = "matting.__main__"  # a program, though it lives in the library's folder
KNOWS_NOT = {
    "matting.attempts": ("matting.storage", "matting.s3", "boto3", "pyarrow", "fsspec"),
    "matting.s3": ("matting.storage", "matting.images", "PIL", "fsspec", "pathlib"),
    "matting.storage": ("matting.images", "PIL"),
    "matting.images": ("matting.storage", "pathlib"),
    "matting.pairs": ("matting.images", "PIL"),
    "matting.unet": ("matting.losses", "matting.devices", "matting.storage", "pathlib"),
    "matting.int8": ("matting.devices", "matting.losses", "matting.storage", "pathlib"),
    "matting.metrics": ("matting.unet", "torch.distributed"),
    "matting.losses": ("matting.unet", "torch.optim", "torch.distributed"),
    "matting.augment": ("matting.storage", "matting.unet", "pathlib", "os", "io"),
    "matting.devices": ("matting.training", "matting.unet"),
    "matting.training": ("ray", "matting.storage", "pathlib", "os", "io"),
    "matting.synthetic": ("torch", "matting.storage", "pathlib", "os", "io"),
    "matting.refine": ("matting.unet", "matting.storage", "pathlib", "os"),
    "matting.photos": ("matting.images", "PIL", "matting.unet"),
    "matting.ledger": ("matting.images", "PIL", "matting.unet", "matting.photos"),
    "matting.gallery": ("matting.unet", "matting.storage", "matting.ledger"),
    "jobs.config": PACKAGES,
    "jobs.actors": (*PACKAGES, "torch", "numpy", "pyarrow"),
    "jobs.telemetry": PACKAGES,
    "jobs.tracking": ("jobs.streams", "jobs.blocks", "matting.predictor"),
    "jobs.outcome": ("jobs.streams", "ray.data", "ray.train"),
    "jobs.findings": ("jobs.measure", "jobs.streams", "ray.data", "ray.train"),
    "jobs.processes": ("jobs.streams", "jobs.findings", "ray.data", "ray.train"),
    "jobs.workload": ("jobs.findings", "jobs.streams", "ray.data", "ray.train"),
    "jobs.measure": ("jobs.cluster", "jobs.streams", "ray.data", "ray.train"),
    "jobs.streams": ("matting.unet", "matting.training", "matting.predictor"),
    "matting.backgrounds": ("torch", "matting.unet"),
    "jobs.material": ("matting.training", "ray.train", "jobs.runs"),
    "jobs.recipe": ("ray.train", "jobs.runs", "jobs.worker"),
    "jobs.worker": ("matting.report", "jobs.tracking"),
}


def sources(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): parsed(path)
    for package in PACKAGES
    for path in sources(package)
    if path.name != "__init__.py"
}


def imports(tree: ast.Module) -> set[str]:
    """Dotted names of what a module imports; of ``from a import b`` both a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


GRAPH = {name: imports(tree) for name, tree in MODULES.items()}
MAINS = {
    name
    for name, tree in MODULES.items()
    if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
}


def known_to(module: str) -> dict[str, str]:
    """All that a module imports, itself or through ours; from each name to the module of ours that imports it."""
    known: dict[str, str] = {}
    waiting = [module]
    while waiting:
        importer = waiting.pop()
        for name in GRAPH[importer] - known.keys():
            known[name] = importer
            if name in GRAPH:
                waiting.append(name)
    return known


def is_below(name: str, *tops: str) -> bool:
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def assert_knows_not(module: str, *forbidden: str) -> None:
    found = {name: importer for name, importer in known_to(module).items() if is_below(name, *forbidden)}
    assert not found, f"{module} must not know these; beside each, who imports it: {found}"


# Direction ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("matting.")))
def test_the_library_knows_no_cluster_no_jobs_and_no_command_line(module: str) -> None:
    assert_knows_not(module, *LIBRARY_KNOWS_NOT, *(() if module == COMMAND_LINE else ("argparse",)))


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("matting.")))
def test_the_library_reads_no_environment(module: str) -> None:
    names = {node.attr for node in ast.walk(MODULES[module]) if isinstance(node, ast.Attribute)}
    names |= {name.removeprefix("os.") for name in GRAPH[module]}
    assert not names & {"environ", "environb", "getenv", "getenvb"}


@pytest.mark.parametrize("module", KNOWS_NOT)
def test_a_module_does_not_know_what_is_not_its_concern(module: str) -> None:
    assert_knows_not(module, *KNOWS_NOT[module])


def test_jobs_share_a_few_modules_and_no_main() -> None:
    assert {"jobs.train", "jobs.pack", "jobs.evaluate", "jobs.predict", "jobs.export"} <= MAINS
    assert {name for name in MODULES if name.startswith("jobs.")} - MAINS == SHARED_JOBS_MODULES
    for module, names in GRAPH.items():
        if module != "jobs.idle":  # which runs two of them, with their arithmetic taken out
            assert not names & MAINS, f"{module} imports a main"


def test_there_are_no_cycles() -> None:
    TopologicalSorter({name: names & GRAPH.keys() for name, names in GRAPH.items()}).prepare()


def test_infra_imports_nothing_of_ours_and_is_imported_by_nothing() -> None:
    for path in sources("infra"):
        assert not any(is_below(name, *PACKAGES, "tests") for name in imports(parsed(path))), path
    for module, names in GRAPH.items():
        assert not any(is_below(name, "infra", "tests") for name in names), module


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_every_module_says_what_it_is_for(folder: str) -> None:
    silent = [path.name for path in sources(folder) if parsed(path).body and not ast.get_docstring(parsed(path))]
    assert not silent, ", ".join(silent)


def test_all_that_the_library_offers_says_what_it_does() -> None:
    silent = [
        f"{module}.{node.name}"
        for module, tree in MODULES.items()
        if module.startswith("matting.")
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        if not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not silent, ", ".join(silent)


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()] + [".git"]
    own_place = re.compile(r"(?<![\w./:-])/(?:home(?!/ray\b)|root|Users|work|mnt)/")  # /home/ray is the Ray image's
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not any(fnmatch(part, pattern) for part in parts for pattern in ignored):
            found += [(str(path), match[0]) for match in own_place.finditer(path.read_text(errors="replace"))]
    assert found == []

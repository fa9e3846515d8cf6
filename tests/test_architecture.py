"""Rules of the layout, checked on the source: directions of imports, sizes, names, docstrings.

Every list of files comes from the tree, so that a new module falls under the rules without an entry here.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("matting", "jobs")
MAX_MODULES = 14  # in one folder of matting or jobs
MAX_LINES = 350  # in one module of matting or jobs


def sources(*folders: str) -> list[Path]:
    """Return all Python files in these folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module) -> set[str]:
    """Return the dotted names that a module imports; for ``from a import b`` both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports must be absolute"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


MODULES = {module_name(path): path for path in sources(*PACKAGES) if path.name != "__init__.py"}
GRAPH = {name: imports(parse(path)) for name, path in MODULES.items()}


def is_below(name: str, *tops: str) -> bool:
    """Whether a dotted name is one of `tops` or in one of them."""
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def all_imports(module: str) -> dict[str, str]:
    """Return everything that a module imports, also through our modules, each with the module that imports it."""
    importers: dict[str, str] = {}
    waiting = [module]
    while waiting:
        importer = waiting.pop()
        for name in GRAPH[importer] - importers.keys():
            importers[name] = importer
            if name in GRAPH:
                waiting.append(name)
    return importers


def assert_never_imports(module: str, *forbidden: str) -> None:
    found = {name: importer for name, importer in all_imports(module).items() if is_below(name, *forbidden)}
    assert not found, f"{module} must not import these, not even through others; beside each, its importer: {found}"


# Directions -----------------------------------------------------------------------------------------------------------

LIBRARY = sorted(name for name in MODULES if is_below(name, "matting"))
COMMAND_LINE = "matting.__main__"  # a program, though it lives in the library's folder
ROOMS = ("storage", "data", "nn", "inference", "results")  # each may import from those before it
JOB_ROOMS = ("training", "prediction", "evaluation", "bench")  # each may import from common, and none from another
NULL_JOBS = "jobs.bench.null_jobs"  # runs the programs without their network


@pytest.mark.parametrize("module", LIBRARY)
def test_library_knows_no_cluster_and_no_arguments(module: str) -> None:
    assert_never_imports(module, "ray", "jobs", "jsonargparse")
    if module != COMMAND_LINE:
        assert_never_imports(module, "argparse")


@pytest.mark.parametrize("module", LIBRARY)
def test_library_reads_no_environment(module: str) -> None:
    names = {node.attr for node in ast.walk(parse(MODULES[module])) if isinstance(node, ast.Attribute)}
    names |= {name.removeprefix("os.") for name in GRAPH[module]}
    assert not names & {"environ", "environb", "getenv", "getenvb"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_the_library_import_one_way(room: str) -> None:
    later = [f"matting.{name}" for name in ROOMS[ROOMS.index(room) + 1 :]]
    modules = [name for name in LIBRARY if is_below(name, f"matting.{room}")]
    assert modules
    for module in modules:
        assert_never_imports(module, *later)


def test_network_knows_only_pixels_of_the_data() -> None:
    for module in LIBRARY:
        if is_below(module, "matting.nn"):
            data = {name for name in GRAPH[module] if is_below(name, "matting.data")}
            assert {name for name in data if not is_below(name, "matting.data.images")} <= {"matting.data"}, module


def test_job_rooms_import_one_way() -> None:
    programs = {name for name in MODULES if is_below(name, "jobs") and name.count(".") == 1}
    others = {room: [f"jobs.{other}" for other in JOB_ROOMS if other != room] for room in JOB_ROOMS}
    for module in MODULES:
        if is_below(module, "jobs.common"):
            assert_never_imports(module, *(f"jobs.{room}" for room in JOB_ROOMS), *programs)
        elif module != NULL_JOBS:
            assert not GRAPH[module] & programs, f"{module} imports a program"
            for room in JOB_ROOMS:
                if is_below(module, f"jobs.{room}"):
                    assert_never_imports(module, *others[room])


def test_programs_run_as_scripts() -> None:
    for name in MODULES:
        if is_below(name, "jobs"):
            tree = parse(MODULES[name])
            runs = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
            assert runs == (name.count(".") == 1), name


def test_no_import_cycles() -> None:
    TopologicalSorter({name: names & GRAPH.keys() for name, names in GRAPH.items()}).prepare()


def test_infra_is_apart() -> None:
    for path in sources("infra"):
        assert not any(is_below(name, *PACKAGES, "tests") for name in imports(parse(path))), path
    for module, names in GRAPH.items():
        assert not any(is_below(name, "infra", "tests") for name in names), module


# What a module must not import, not even through others, beyond the directions above. A name covers what is below it.
NEVER_IMPORTS = {
    "matting.storage.retry": ("matting.storage.s3", "matting.storage.store", "boto3", "pyarrow", "fsspec"),
    "matting.storage.s3": ("matting.storage.store", "fsspec"),
    "matting.storage.store": ("PIL", "torch"),
    "matting.data.images": ("matting.storage", "pathlib"),
    "matting.data.synthetic": ("torch", "matting.storage", "pathlib"),
    "matting.data.backgrounds": ("torch",),
    "matting.nn.unet": ("matting.nn.losses", "matting.nn.precision", "matting.storage", "pathlib"),
    "matting.nn.losses": ("matting.nn.unet", "torch.optim", "torch.distributed"),
    "matting.nn.metrics": ("matting.nn.unet", "torch.distributed"),
    "matting.nn.augment": ("matting.nn.unet", "matting.storage", "pathlib", "os", "io"),
    "matting.nn.precision": ("matting.nn.trainer", "matting.nn.unet"),
    "matting.nn.batchnorm": ("matting.nn.trainer", "matting.nn.unet"),
    "matting.nn.trainer": ("matting.storage", "pathlib", "os", "io"),
    "matting.inference.int8": ("matting.nn.losses", "matting.nn.precision", "matting.storage", "pathlib"),
    "matting.inference.refine": ("matting.nn.unet", "matting.storage", "pathlib", "os"),
    "matting.results.ledger": ("matting.data.images", "matting.data.photos", "matting.nn", "PIL"),
    "matting.results.gallery": ("matting.nn.unet", "matting.results.ledger", "matting.storage"),
    "jobs.common.config": ("matting", "ray", "torch"),
    "jobs.common.mailbox": ("matting", "torch", "numpy", "pyarrow"),
    "jobs.common.telemetry": ("matting", "torch"),
    "jobs.training.config": ("jobs.training.run_folder", "jobs.training.worker", "ray.train"),
    "jobs.training.data": ("jobs.training.run_folder", "jobs.training.worker"),
    "jobs.training.streams": ("matting.inference", "matting.nn.trainer", "matting.nn.unet"),
    "jobs.training.mlflow": ("jobs.training.streams", "matting.inference"),
    "jobs.training.worker": ("jobs.training.mlflow", "matting.results"),
    "jobs.prediction.report": ("ray.data", "ray.train"),
    "jobs.bench.timing": ("jobs.common", "matting", "ray", "torch"),
    "jobs.bench.report": ("jobs.bench.processes", "jobs.bench.workload", "ray.data", "ray.train"),
    "jobs.bench.processes": ("jobs.bench.report", "ray.data", "ray.train"),
}


@pytest.mark.parametrize("module", NEVER_IMPORTS)
def test_module_keeps_to_its_subject(module: str) -> None:
    assert_never_imports(module, *NEVER_IMPORTS[module])


@pytest.mark.parametrize("module", ["matting.data.pairs", "matting.data.photos"])
def test_listing_files_decodes_none(module: str) -> None:
    images = "matting.data.images"
    names = {name.removeprefix(f"{images}.") for name in GRAPH[module] if name.startswith(f"{images}.")}
    assert all(name.isupper() for name in names), f"{module} may import constants of {images} only, and not {names}"


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_folders_are_small() -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    for path in sources(*PACKAGES):
        counts[str(path.parent.relative_to(ROOT))] += path.name != "__init__.py"
    assert {folder: count for folder, count in counts.items() if count > MAX_MODULES} == {}


def test_modules_are_short() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


# Names ----------------------------------------------------------------------------------------------------------------

# Identifiers that were replaced by the field's own terms, with the names to use.
RETIRED_NAMES = {
    "vary": "augment",
    "relight": "color_jitter",
    "wear": "degrade",
    "kind_of_trainer": "trainer_class",
    "kind_of_work": "work_class",
    "fewest_workers": "min_workers",
    "most_workers": "max_workers",
    "augment_until": "augment_fraction",
    "varied_size": "augment_size",
    "small_until": "half_res_fraction",
    "picture": "image or photo",
    "pictures": "images or photos",
}
# Names of options that are ordinary words elsewhere, so only fields are checked.
RETIRED_OPTIONS = {"average": "ema_decay", "ends": "alpha_clip", "join": "skip", "stem": "unshuffle"}


def identifiers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("id", "arg", "attr", "name"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def test_no_retired_names() -> None:
    found = {
        f"{module_name(path)}: {name}": RETIRED_NAMES[name]
        for path in sources(*PACKAGES, "tests")
        for name in identifiers(parse(path))
        if name in RETIRED_NAMES
    }
    found |= {
        f"{module}.{node.name}.{field.target.id}": RETIRED_OPTIONS[field.target.id]
        for module, path in MODULES.items()
        for node in parse(path).body
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if field.target.id in RETIRED_OPTIONS
    }
    assert found == {}


def test_no_name_is_defined_twice() -> None:
    places = defaultdict(list)
    for module, path in MODULES.items():
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and not node.name.startswith("_")):
                places[node.name].append(module)
    del places["main"]
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


# Docstrings -----------------------------------------------------------------------------------------------------------

FRAGMENT = re.compile(r"(?:Of|That|As it|By which|Those)\b")


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield getattr(node, "name", path.stem), ast.get_docstring(node) or ""


def test_docstrings_are_no_fragments() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}: {text.splitlines()[0]}"
        for path in sources(*PACKAGES, "tests")
        for name, text in docstrings(path)
        if FRAGMENT.match(text)
    ]
    assert found == []


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_modules_have_a_docstring(folder: str) -> None:
    silent = [path.name for path in sources(folder) if parse(path).body and not ast.get_docstring(parse(path))]
    assert silent == []


def test_packages_have_a_docstring_and_nothing_else() -> None:
    packages = [path for path in sources(*PACKAGES) if path.name == "__init__.py"]
    assert len(packages) > len(ROOMS)
    for path in packages:
        assert ast.get_docstring(parse(path)), f"{path} must say what belongs into the package"
        assert len(parse(path).body) == 1, f"{path} must hold its docstring only"


def test_public_names_of_the_library_have_a_docstring() -> None:
    silent = [
        f"{module}.{node.name}"
        for module in LIBRARY
        for node in parse(MODULES[module]).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        if not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert silent == []


# Places ---------------------------------------------------------------------------------------------------------------


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()] + [".git"]
    own_place = re.compile(r"(?<![\w./:-])/(?:home(?!/ray\b)|root|Users|work|mnt)/")  # /home/ray is the Ray image's
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not any(fnmatch(part, pattern) for part in parts for pattern in ignored):
            found += [(str(path), match[0]) for match in own_place.finditer(path.read_text(errors="replace"))]
    assert found == []

"""Files of a stranger run no code and reach no other folder; dependencies have no known vulnerabilities.

Other tests of security stand beside their modules: bombs in matting/data, keys that leave their folder and passwords in
URIs in matting/storage, escaping of pages in matting/results, secrets in logs in studies/test_soak.py.
"""

import ast
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from jobs.evaluation.alphas import FileAlphas
from jobs.training.run_folder import PROGRESS, RunFolder
from matting.data import pairs, photos, shards
from matting.data.images import BadImage
from matting.data.mattes import read_matte
from matting.data.photo_tables import PhotosError
from matting.data.shards import ShardError
from matting.data.sources.tables import TableError
from matting.results import ledger
from matting.results.ledger import LedgerError
from matting.storage.errors import StorageError
from tests.support.paths import ROOT
from tests.support.pickles import Payload

# Code in files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def unpickling(executed: Path) -> pa.Array:
    """A column that unpickles its values when they are read. `import ray.data` registers its type for all of Arrow."""
    kind = ArrowPythonObjectType()
    column = kind.wrap_array(pa.array([pickle.dumps(Payload(executed))], kind.storage_type))
    column[0].as_py()
    assert executed.exists(), "Ray's type no longer unpickles: this test proves nothing"
    executed.unlink()
    return column


def write(path: Path, columns: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="none")
    return str(path)


def test_table_of_photos_runs_no_code(unpickling: pa.Array, executed: Path, tmp_path: Path) -> None:
    whole = {"key": ["a.jpg"], "image": pa.array([b"x"]), "etag": ["e"], "size": [1]}
    hidden = pa.StructArray.from_arrays([unpickling], ["bytes"])
    for change in ({name: unpickling} for name in whole):
        with pytest.raises((PhotosError, TableError)):
            photos.find_photos(write(tmp_path / "photos.parquet", whole | change))
    with pytest.raises(PhotosError):
        photos.find_photos(write(tmp_path / "photos.parquet", whole | {"image": hidden}))
    assert not executed.exists()


def test_manifest_runs_no_code(unpickling: pa.Array, executed: Path, tmp_path: Path) -> None:
    whole = {"key": ["a"], "image": ["a.jpg"], "matte": ["a.png"], "split": ["train"], "group": ["g"]}
    for name in whole:
        with pytest.raises(TableError, match=f"a column {name} that does not hold string"):
            pairs.find_pairs(write(tmp_path / "pairs.parquet", whole | {name: unpickling}))
    assert not executed.exists()


def test_packed_pairs_run_no_code(unpickling: pa.Array, executed: Path, tmp_path: Path) -> None:
    whole = shards.PART_SCHEMA.empty_table().to_pydict() | {
        field.name: pa.nulls(1, field.type) for field in shards.PART_SCHEMA
    }
    description = {"parts": [{"name": "part-00000.parquet", "rows": 1}]}
    for name in ("key", "split", "image", "matte"):
        write(tmp_path / "part-00000.parquet", whole | {name: unpickling})
        with pytest.raises(ShardError, match="no part that this version packs"):
            shards.read_index(str(tmp_path), description)
    assert not executed.exists()


def test_ledger_runs_no_code(unpickling: pa.Array, executed: Path, tmp_path: Path) -> None:
    whole = {field.name: pa.nulls(1, field.type) for field in ledger.LEDGER_SCHEMA}
    for name in ("key", "status", "outputs"):
        write(tmp_path / "_ledger/part.parquet", whole | {name: unpickling})
        with pytest.raises(LedgerError):
            ledger.read(str(tmp_path))
    assert not executed.exists()


def test_tables_of_mattes_and_scores_run_no_code(unpickling: pa.Array, executed: Path, tmp_path: Path) -> None:
    write(tmp_path / "mattes/part.parquet", {"key": ["a"], "etag": ["e"], "alpha": unpickling, "cutout": unpickling})
    with pytest.raises(StorageError, match="no table of mattes"):
        read_matte("a", str(tmp_path / "mattes/part.parquet"), 100)
    write(tmp_path / "validation.parquet", {"key": unpickling, "mad": [1.0], "mse": [1.0], "iou": [1.0]})
    with pytest.raises(pa.ArrowInvalid):
        RunFolder(str(tmp_path)).scores()
    assert not executed.exists()


def test_progress_of_a_run_is_no_pickle(executed: Path, tmp_path: Path) -> None:
    (tmp_path / PROGRESS).write_bytes(pickle.dumps(Payload(executed)))
    with pytest.raises(ValueError, match=r"(?i)json|utf"):
        RunFolder(str(tmp_path)).progress()
    assert not executed.exists()


def test_no_module_can_unpickle() -> None:
    for path in [*(ROOT / "matting").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"} & set(names), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load"):
                assert "weights_only=True" in ast.unparse(node), path


# Names ----------------------------------------------------------------------------------------------------------------


def test_hostile_key_reads_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "mattes").mkdir()
    (tmp_path / "mattes/own.png").write_bytes(b"own")
    for key in ("../secret.jpg", "a/../../secret"):
        with pytest.raises(BadImage, match="no prediction"):
            FileAlphas(str(tmp_path / "mattes"), [key])(key, None)


def test_hostile_description_names_no_other_folder(tmp_path: Path) -> None:
    description = {"parts": [{"name": "../part-00000.parquet", "rows": 1}]}
    with pytest.raises(StorageError, match="would lead out of"):
        shards.read_index(str(tmp_path / "packed"), description)


# Dependencies ---------------------------------------------------------------------------------------------------------


def audited(*arguments: str) -> list[dict[str, Any]]:
    """Return pip-audit's report on packages; [] if it has no data."""
    command = [sys.executable, "-m", "pip_audit", "--format=json", "--progress-spinner=off", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    return json.loads(done.stdout)["dependencies"] if done.stdout.startswith("{") else []


@pytest.mark.slow
def test_no_dependency_has_a_fixable_vulnerability(tmp_path: Path) -> None:
    known = tmp_path / "requirements.txt"
    known.write_text("jinja2==2.10\n")
    if not any(package.get("vulns") for package in audited("--disable-pip", "--no-deps", f"--requirement={known}")):
        pytest.skip("no data on vulnerabilities here: not even those of jinja2 2.10 are known")
    vulnerabilities = {
        package["name"]: package["vulns"]
        for package in audited("--skip-editable")
        if any(flaw["fix_versions"] for flaw in package.get("vulns", ()))
    }
    assert not vulnerabilities

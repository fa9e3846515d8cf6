"""gs:// and az:// through their packages, against emulators of Google Cloud Storage and of Azure's blobs."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from azure.storage.blob import BlobServiceClient
from pyarrow import fs

from matting.storage import store
from matting.storage.errors import NotFoundError
from tests.support.stores import free_port, wait_for_port

AZURITE = "azurite@3.37.0"
# The account of every emulator of Azure: name and key are published.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the clients keep their connections until the process ends
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def run_google(port: int, folder: Path, stack: ExitStack) -> None:
    del folder
    start = "import sys, gcp_storage_emulator.__main__ as m; sys.exit(m.main(sys.argv[1:]))"
    options = ["start", "--host=127.0.0.1", f"--port={port}", "--in-memory", "--default-bucket=bucket"]
    run_server([sys.executable, "-c", start, *options], port, stack)
    stack.enter_context(pytest.MonkeyPatch.context()).setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")


def run_azure(port: int, folder: Path, stack: ExitStack) -> None:
    if not shutil.which("npm"):
        pytest.skip(f"{AZURITE} is installed with npm, which is not here")
    program = folder / "node_modules/azurite/dist/src/blob/main.js"
    if not program.exists():
        install = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", AZURITE]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install {AZURITE}: {done.stderr.strip()}")
    options = ["--silent", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck"]
    run_server(["node", str(program), *options, f"--blobPort={port}"], port, stack)
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    connection = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
    stack.enter_context(pytest.MonkeyPatch.context()).setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    BlobServiceClient.from_connection_string(connection).create_container("bucket")


def run_server(command: list[str], port: int, stack: ExitStack) -> None:
    """Start a server, which ends with the stack, and wait until it answers."""
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    stack.callback(process.terminate)
    wait_for_port(process, port)


@pytest.fixture(scope="module", params=[("gs", run_google), ("az", run_azure)], ids=["gs", "az"])
def cloud(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[str]:
    """The URI of a bucket of each store."""
    scheme: str
    run: Callable[[int, Path, ExitStack], None]
    scheme, run = request.param
    with ExitStack() as stack:
        run(free_port(), Path(pytestconfig.cache.mkdir("azurite")), stack)
        yield f"{scheme}://bucket"


def test_objects_are_written_listed_and_deleted(cloud: str) -> None:
    folder = f"{cloud}/{uuid.uuid4().hex}"
    store.check_writable(folder)
    contents = {"empty": b"", "z/ä€😀 #%20?.png": b"123", "large": os.urandom(9 * 2**20)}
    for name, data in contents.items():
        store.write_bytes(f"{folder}/{name}", data)
    files = store.list_files(folder)
    assert {file.key: file.size for file in files} == {name: len(data) for name, data in contents.items()}
    for file in files:
        uri = f"{folder}/{file.key}"
        assert store.stat(uri) == file._replace(key=file.key.rpartition("/")[2])
        assert store.read_bytes(uri) == contents[file.key]
    store.write_bytes(f"{folder}/z/ä€😀 #%20?.png", b"456")
    assert store.list_files(folder)[2].etag != files[2].etag, "a change of three bytes is one, too"
    opened, path = store.filesystem(folder)
    assert opened.get_file_info(path).type == fs.FileType.Directory
    for file in files:
        store.delete(f"{folder}/{file.key}")
        store.delete(f"{folder}/{file.key}")
    with pytest.raises(NotFoundError):
        store.list_files(folder)
    with pytest.raises(NotFoundError):
        store.read_bytes(f"{folder}/large")

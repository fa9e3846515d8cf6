"""Proof that a local path is the same place on every node of a joined cluster.

    prove             driver: output and inputs -> Token, which all nodes have checked
    require_visible   worker: check the token, once in each process, as its node may have joined late

The driver writes a token into the output folder and describes the inputs, and a task on each node looks for both. Only
local paths need that; URIs of object stores name the same place everywhere.
"""

import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import ray

from jobs.common.cluster import ClusterError
from jobs.common.nodes import ask_nodes, nodes_with
from matting.messages import first_few
from matting.storage.local import locked_partial
from matting.storage.uri import is_local, split_uri

# File systems of a network show what another machine has just written after a moment.
PATIENCE_SECONDS = 5.0
FILES = 100  # files of an input folder that a node looks for

CURE = "Give URIs of object storage, or paths of a disk that all nodes mount at the same place."

SeenFile: TypeAlias = tuple[str, int, int]  # name below the input, size in bytes, modification time in seconds


class InvisiblePathError(ClusterError):
    """A local path that is not the same place on all nodes. The message names node and path, and says what to do."""


@dataclass(frozen=True)
class Token:
    """What a node must see.

    Args:
        output: Local path of the output folder; "" for a URI of an object store.
        file: Path of a file that the driver has written there.
        inputs: Local paths that the job reads, each with some of its files.
    """

    output: str
    file: str
    inputs: tuple[tuple[str, tuple[SeenFile, ...]], ...]


@contextmanager
def prove(is_own: bool, output: str, inputs: Iterable[str]) -> Iterator[Token | None]:
    """Prove that all nodes see the same files, and keep the token for late ones until the end of the ``with``.

    Args:
        is_own: Whether the cluster is of this machine alone, so that there is nothing to prove.
        output: URI of the folder that workers write to.
        inputs: URIs that workers read.

    Raises:
        InvisiblePathError: A node does not see the same files.
        ClusterError: A node does not answer.
    """
    paths = {split_uri(uri)[1] for uri in inputs if is_local(uri)}
    with ExitStack() as stack:
        folder = split_uri(output)[1] if is_local(output) else ""
        if is_own or not (folder or paths):
            yield None
            return
        file = str(stack.enter_context(locked_partial(Path(folder)))) if folder else ""
        token = Token(folder, file, tuple((path, describe_input(Path(path), folder)) for path in sorted(paths)))
        here = ray.get_runtime_context().get_node_id()
        others = [node for node in nodes_with("CPU", "GPU") if node["NodeID"] != here]
        answers = ask_nodes(invisible_path, (token,), others)
        if missing := [f"{name} does not see {path} as the driver does" for name, path in answers.items() if path]:
            raise InvisiblePathError(f"{first_few(missing)}. {CURE}")
        yield token


@lru_cache
def require_visible(token: Token | None) -> None:
    """Check that this process sees what the driver sees.

    Raises:
        InvisiblePathError: It does not.
    """
    if token and (path := invisible_path(token)):
        raise InvisiblePathError(f"node {platform.node()} does not see {path} as the driver does. {CURE}")


def invisible_path(token: Token) -> str:
    """Return the first path that this process does not see as the driver does, or nothing."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        path = _look(token)
        if not path or time.monotonic() > deadline:
            return path
        time.sleep(0.5)


def _look(token: Token) -> str:
    if token.file and not Path(token.file).exists():
        return token.output
    for path, files in token.inputs:  # while the job runs, some files may be replaced
        if files and all(_stat(Path(path, name)) != (size, seconds) for name, size, seconds in files):
            return path
    return ""


def describe_input(path: Path, without: str) -> tuple[SeenFile, ...]:
    """Return name, size and modification time of a file, or of the first ``FILES`` files in a folder.

    Args:
        path: The file or folder.
        without: Folder whose files change while the job runs, so that they do not count; or "".
    """
    paths = _walk(path, without) if path.is_dir() else iter([path])
    return tuple(
        (str(file.relative_to(path)), *found) for file in islice(paths, FILES) if (found := _stat(file)) is not None
    )


def _stat(file: Path) -> tuple[int, int] | None:
    try:
        info = file.stat()
    except OSError:
        return None
    return info.st_size, int(info.st_mtime)


def _walk(folder: Path, without: str) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if str(Path(parent, name)) != without)
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))

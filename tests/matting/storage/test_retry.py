"""Retries: any request may fail once; repeated failures end in an error that names its cause and its remedy."""

import errno
import io
import logging

import pyarrow as pa
import pytest
from botocore.exceptions import ClientError

from matting.storage import s3, store
from matting.storage.backend import read_range
from matting.storage.errors import (
    NotFoundError,
    ShortRead,
    StorageError,
    TransientStorageError,
    advice_for,
    error_code,
    is_transient,
)
from matting.storage.retry import with_retries
from tests.support.faults import KINDS


def read_through_filesystem(folder: str) -> bytes:
    filesystem, path = store.filesystem(f"{folder}/a.bin")
    with filesystem.open_input_file(path) as stream:
        return stream.read_at(10, 20)


def write_through_filesystem(folder: str) -> None:
    filesystem, path = store.filesystem(f"{folder}/b.bin")
    with filesystem.open_output_stream(path) as stream:
        stream.write(b"12")
        stream.write(b"345")


# Operations on a folder that holds a.bin, each with its result.
OPERATIONS = {
    "open": (lambda folder: store.filesystem(folder)[1], lambda folder: folder.removeprefix("s3://")),
    "list": (lambda folder: [file.key for file in store.list_files(folder)], ["a.bin"]),
    "look at": (lambda folder: store.stat(f"{folder}/a.bin").size, 100),
    "read": (lambda folder: store.read_bytes(f"{folder}/a.bin"), bytes(range(100))),
    "read a range": (read_through_filesystem, bytes(range(20, 30))),
    "write": (lambda folder: store.write_bytes(f"{folder}/b.bin", b"12345"), None),
    "write through the filesystem": (write_through_filesystem, None),
    "delete": (lambda folder: store.delete(f"{folder}/c.bin"), None),
}


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_any_request_may_fail_once(folder, store_proxy, caplog, operation):
    operate, expected = OPERATIONS[operation]
    if operation == "open":
        s3._region.cache_clear()
        expected = expected(folder)
    before = store_proxy.requests
    operate(folder)
    requests = store_proxy.requests - before
    assert caplog.records == []
    for number in range(requests):
        for kind in KINDS:
            if operation == "open":
                s3._region.cache_clear()
            caplog.clear()
            store_proxy.next_faults.extend([None] * number + [kind])
            assert operate(folder) == expected
            assert not store_proxy.next_faults
            if kind == "delay":
                assert caplog.records == []
                continue
            (record,) = caplog.records
            assert (record.name, record.levelno) == ("matting.storage.retry", logging.WARNING)
            assert folder in record.message
            assert "try 1 of 6, retrying in 0.0 s: " in record.message
    if "write" in operation:
        assert store.read_bytes(f"{folder}/b.bin") == b"12345"


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("kind", "advice"), [("throttle", "the store asks for fewer requests"), ("refuse", "the connection broke")]
)
def test_final_error_counts_the_tries(folder, store_proxy, caplog, kind, advice):
    for call, verb in ((store.read_bytes, "read"), (store.stat, "look at"), (store.delete, "delete")):
        caplog.clear()
        store_proxy.next_faults.extend([kind] * 6)
        message = rf"Cannot {verb} {folder}/a\.bin, tried 6 times: {advice}"
        with pytest.raises(TransientStorageError, match=message):
            call(f"{folder}/a.bin")
        assert not store_proxy.next_faults
        assert [record.args[2] for record in caplog.records] == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("no_waiting")
def test_failed_write_keeps_the_old_object(folder, store_proxy):
    for kind in ("cut request", "throttle", "refuse"):
        store_proxy.next_faults.extend([kind] * 6)
        with pytest.raises(TransientStorageError, match=r"Cannot write .* tried 6 times"):
            store.write_bytes(f"{folder}/a.bin", bytes(1000))
    assert store.read_bytes(f"{folder}/a.bin") == bytes(range(100))


class ShortFile(io.BytesIO):
    """File that returns one byte less than it has."""

    def read(self, count: int | None = -1) -> bytes:
        return super().read(count)[:-1]


@pytest.mark.usefixtures("no_waiting")
def test_short_read_is_an_error():
    with pa.PythonFile(ShortFile(b"12345"), mode="r") as stream:
        message = r"tried 6 times: the connection broke.*ShortRead: 2 bytes came of 3"
        with pytest.raises(TransientStorageError, match=message):
            with_retries("s3://b/k", "read", lambda: read_range(stream, 1, 3))
        assert read_range(stream, 5, 3) == b""


@pytest.mark.usefixtures("no_waiting")
def test_aborted_upload_is_retried():
    answers = iter([ClientError({"Error": {"Code": "NoSuchUpload"}}, "UploadPart"), "written"])

    def write() -> str:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    assert with_retries("s3://b/k", "write", write) == "written"


def failing(error: Exception) -> list[Exception]:
    """Return the errors that an operation raised which always fails so, and last the one that came of it."""
    raised = []

    def fail() -> None:
        raised.append(error)
        raise error

    with pytest.raises(StorageError) as caught:
        with_retries("s3://b/k", "read", fail)
    return [*raised, caught.value]


@pytest.mark.usefixtures("no_waiting")
def test_permanent_errors_are_not_retried():
    _, error = failing(OSError(errno.ENOSPC, "No space left"))
    assert str(error).startswith("Cannot read s3://b/k: the disk is full")
    assert not isinstance(error, TransientStorageError)
    _, error = failing(ValueError("odd"))
    assert str(error) == "Cannot read s3://b/k: the store's own message follows. [ValueError: odd]"
    _, error = failing(FileNotFoundError("k"))
    assert isinstance(error, NotFoundError)
    assert "tried" not in str(error)


@pytest.mark.usefixtures("no_waiting")
def test_errors_of_nested_retries_are_final():
    *tries, inner = failing(OSError("AWS Error SLOW_DOWN during GetObject"))
    assert len(tries) == 6
    assert failing(inner) == [inner, inner]


@pytest.mark.parametrize(
    ("error", "code", "transient"),
    [
        (ClientError({"Error": {"Code": "SlowDown"}}, "GetObject"), "SlowDown", True),
        (OSError("When reading: AWS Error ACCESS_DENIED during GetObject"), "ACCESS_DENIED", False),
        (OSError("AWS Error UNKNOWN (HTTP status 503) during GetObject"), "503", True),
        (OSError(errno.ECONNRESET, "reset"), "ECONNRESET", True),
        (PermissionError(errno.EACCES, "denied"), "EACCES", False),
        (ShortRead("2 bytes came of 3"), "ShortRead", True),
        (KeyError("odd"), "KeyError", False),
    ],
)
def test_errors_are_classified_by_code(error, code, transient):
    assert error_code(error) == code
    assert is_transient(error) == transient
    assert (advice_for(error) is None) == isinstance(error, KeyError)

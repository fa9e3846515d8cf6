"""Upload of what each epoch leaves in the run folder, which goes on in the background while the store refuses it.

    EpochFiles -> files, then progress.json, then best/ -> run folder

A store may refuse requests for minutes. Training goes on meanwhile; the newest epoch waits in a local folder too, and
takes the place of an earlier one that is not uploaded yet.
"""

import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.training.run_folder import CHECKPOINT_NAME, PROGRESS, RunFolder, encode_json
from matting.storage.errors import TransientStorageError

RETRY_SECONDS = 5.0  # pause between two tries of an upload; the requests of each try are retried in themselves
LAST_SECONDS = 600.0  # time for the last upload at the end of a run


@dataclass(frozen=True)
class EpochFiles:
    """Everything that an epoch leaves in the run folder.

    Args:
        files: Contents by path in the run folder, in the order in which to write them.
        progress: Contents of progress.json, to be written after the files.
        best: Contents of best/ by name, to be written last; empty if it is to stay as it is.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, bytes] = field(default_factory=dict)

    def after(self, earlier: "EpochFiles") -> "EpochFiles":
        """Return these files together with those of an earlier epoch that were not uploaded and are still needed."""
        needed = {self.progress["last"], self.progress["best"]}
        folders = {path: path.partition("/")[0] for path in earlier.files}
        kept = {
            path: data
            for path, data in earlier.files.items()
            if folders[path] in needed or not CHECKPOINT_NAME.fullmatch(folders[path])
        }
        return EpochFiles({**kept, **self.files}, self.progress, self.best or earlier.best)


class EpochUploader:
    """Uploader of one epoch after the other into a run folder, in a thread of its own.

    Args:
        folder: Run folder.
        say: Function that prints a line on the job's terminal.
    """

    def __init__(self, folder: RunFolder, say: Callable[[str], object]) -> None:
        self._folder, self._say = folder, say
        self._changed = threading.Condition()
        self._pending: EpochFiles | None = None
        self._is_refused = False  # whether the store has refused the files of an epoch, and taken none since
        self._refusal: TransientStorageError | None = None  # the last one
        self._error: Exception | None = None  # one that no retry cures
        self._is_closing = False
        self._kept: Path | None = None  # local folder of the epoch that the store refuses
        self._kept_epoch: EpochFiles | None = None
        threading.Thread(target=self._work, daemon=True).start()

    def upload(self, epoch: EpochFiles) -> None:
        """Upload an epoch, and return when progress.json is written, or when the store has refused it for now.

        While the store refuses, this returns at once, and the upload is retried in the background.

        Raises:
            StorageError: The store refuses this or an earlier upload for a permanent cause.
        """
        with self._changed:
            if self._pending:
                epoch = epoch.after(self._pending)
            self._pending = epoch
            self._changed.notify_all()
            self._changed.wait_for(self._has_tried)
            if self._error:
                raise self._error

    def close(self) -> None:
        """Wait until everything is uploaded.

        Raises:
            StorageError: The store refuses it for a permanent cause, or for ``LAST_SECONDS``. The message names the
                local folder that has the last checkpoint.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or not self._pending, LAST_SECONDS)
            if self._error:
                raise self._error
            if self._pending:
                where = f" It is kept in {self._kept}: copy that into the run folder." if self._kept else ""
                raise TransientStorageError(
                    f"The last checkpoint of {self._folder.uri} could not be uploaded.{where} {self._refusal}"
                )

    def _has_tried(self) -> bool:
        return bool(self._error or self._is_refused or not (self._pending and self._pending.files))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._is_closing)
                epoch = self._pending
            if epoch is None:
                return
            try:
                self._put(epoch)
            except TransientStorageError as error:
                with self._changed:  # else its files are uploaded but best/, or a later epoch has taken its place
                    is_refused = bool(epoch.files) and self._pending is epoch
                if is_refused and epoch is not self._kept_epoch:
                    self._keep(epoch, error)
                with self._changed:
                    self._refusal = error
                    self._is_refused = self._is_refused or is_refused
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._pending is not epoch, RETRY_SECONDS)  # noqa: B023
            except Exception as error:  # to be raised where it ends the run
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return

    def _put(self, epoch: EpochFiles) -> None:
        """Try once to upload all of an epoch."""
        if epoch.files:
            for path, data in epoch.files.items():
                self._folder.write(path, data)
            self._folder.commit_progress(epoch.progress)
            if self._is_refused:
                self._say(f"The checkpoint of epoch {epoch.progress['epochs_done']} is uploaded.")
            epoch = self._replace(epoch, EpochFiles(best=epoch.best))
            self._forget()
        for name, data in epoch.best.items():
            self._folder.write(f"best/{name}", data)
        self._replace(epoch, None)

    def _replace(self, done: EpochFiles, left: EpochFiles | None) -> EpochFiles:
        """Leave this much of an epoch to upload, unless a later one has taken its place."""
        with self._changed:
            self._is_refused = False
            if self._pending is done:
                self._pending = left
            self._changed.notify_all()
        return left or EpochFiles()

    def _keep(self, epoch: EpochFiles, error: TransientStorageError) -> None:
        """Write an epoch that the store refuses to a local folder, in place of the one before."""
        before, self._kept, self._kept_epoch = self._kept, None, epoch
        try:
            kept = Path(tempfile.mkdtemp(prefix=f"{self._folder.name}-"))
            for path, data in {**epoch.files, PROGRESS: encode_json(epoch.progress)}.items():
                (kept / path).parent.mkdir(parents=True, exist_ok=True)
                (kept / path).write_bytes(data)
            self._kept, where = kept, f"kept in {kept}"
        except OSError as failure:
            where = f"kept in memory alone ({failure})"
        if before:
            shutil.rmtree(before, ignore_errors=True)
        if not self._is_refused:
            self._say(
                f"The checkpoint of epoch {epoch.progress['epochs_done']} is {where}, and its upload goes on. {error}"
            )

    def _forget(self) -> None:
        if self._kept:
            shutil.rmtree(self._kept, ignore_errors=True)
            self._kept = None

"""Files that are whole or absent: written beside their final place, flushed to disk, then moved there in one step."""

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from samtune.common.errors import InputError

PARTIAL = ".partial"  # never counts as present; git-ignored
STALE_AFTER = 3600  # seconds
LOCK = ".samtune.lock"
DISK_FULL = "disk full while writing"


class DiskFull(InputError):
    """No space left on the disk. Files that were complete before still are."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` and make its folder if needed; a kill at any moment leaves the old file or the new one.

    Raises `DiskFull`, one line, when the disk or the quota is full; the unfinished file is removed.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(PARTIAL, ".", path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp's files are private
        os.replace(partial, path)
    except OSError as error:
        if partial:
            Path(partial).unlink(missing_ok=True)
        if is_disk_full(error):
            raise disk_full(path, error) from error
        raise
    except BaseException:
        if partial:
            Path(partial).unlink(missing_ok=True)
        raise
    _force_name_to_disk(path.parent)


def is_disk_full(error: BaseException | None) -> bool:
    """Does `error` mean that the disk or the quota is full?"""
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))


def disk_full(path: Path, error: BaseException) -> DiskFull:
    """The one-line error for the user, when writing `path` (or into that folder) raised `error`."""
    place = getattr(error, "filename", None) or path
    return DiskFull(
        f"{DISK_FULL} {place}: free some space and run the same command again; everything written before is intact"
    )


def _force_name_to_disk(folder: Path) -> None:
    """Flush the folder, so that the move itself survives a power cut, on systems that can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems refuse
        pass
    finally:
        os.close(descriptor)


def remove_stale_partials(folder: Path) -> None:
    """Remove unfinished files in `folder` that are so old that no process is still writing them."""
    for partial in folder.glob(f".*{PARTIAL}"):
        try:
            if time.time() - partial.stat().st_mtime > STALE_AFTER:
                partial.unlink()
        except FileNotFoundError:  # another process was quicker
            pass


def lock(path: Path) -> FileLock:
    """A lock on the file `path`, for `with`, which waits while another process holds it.

    The lock of a killed process is released at once. So two notebooks that run side by side never train the same cell
    twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


@contextmanager
def alone(folder: Path, command: str) -> Iterator[None]:
    """Inside this context, no other process runs `command` into `folder`; `InputError` where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            try:
                yield
            finally:
                (folder / LOCK).unlink(missing_ok=True)
    except Timeout as error:
        raise InputError(f"another {command} is writing to {folder}: wait for it, or give another folder") from error


def is_locked(path: Path) -> bool:
    """Does another process hold the lock file `path` now?"""
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True

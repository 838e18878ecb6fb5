"""Files that are whole or absent: written beside their place, forced to disk, then moved there in one step."""

import errno
import os
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from samtune.common.errors import InputError

PARTIAL = ".partial"  # never counts as present; git-ignored
DISK_FULL = "disk full while writing"


class DiskFull(InputError):
    """No space left: whatever was complete before still is."""


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`, making its folder if needed; a kill at any moment leaves the old file or the new one.

    Raises `DiskFull`, one line, when the disk or the quota has no room; the unfinished file is removed.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
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


def is_disk_full(error: BaseException) -> bool:
    """Does `error` say that the disk or the quota is full?"""
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))


def disk_full(path: Path, error: BaseException) -> DiskFull:
    """The one line for the user, where writing `path` (or something in that folder) gave `error`."""
    place = getattr(error, "filename", None) or path
    return DiskFull(
        f"{DISK_FULL} {place}: free some space and run the same command again; everything written before is intact"
    )


def _force_name_to_disk(folder: Path) -> None:
    """Make the move itself survive a power cut, where the system can do that for a folder."""
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


def remove_stale_partials(folder: Path, older_than_seconds: float = 3600) -> None:
    """Remove unfinished files that a killed process left in `folder` long enough ago to be nobody's."""
    for partial in folder.glob(f".*{PARTIAL}"):
        try:
            if time.time() - partial.stat().st_mtime > older_than_seconds:
                partial.unlink()
        except FileNotFoundError:  # another process was quicker
            pass


def lock(path: Path) -> FileLock:
    """The lock file `path`, to be held by `with`, which waits for another process that has it.

    A killed process lets go of it at once. Two notebooks that run side by side thus never train the same cell twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def is_locked(path: Path) -> bool:
    """Does some process hold the lock file `path` right now?"""
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True

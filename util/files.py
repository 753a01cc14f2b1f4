"""Writing files whole or not at all: a kill or a full disk leaves the old content."""

import errno
import hashlib
import os
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from util.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

ABANDONED = 3600  # seconds after which an unfinished file counts as left by a killed process


def checksum_of(path: Path | None) -> int | None:
    """The CRC-32 of a file, None if there is none."""
    return zlib.crc32(path.read_bytes()) if path and path.is_file() else None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary name, flushed, then renamed."""
    with replacing(path) as temporary:
        write_flushed(temporary, content)


def write_text(path: Path, text: str) -> None:
    """write_bytes for text."""
    write_bytes(path, text.encode(errors="surrogateescape"))  # file names need not be Unicode


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in path's folder; the file written there replaces path atomically.

    If the block raises, path stays as it was. The temporary name is short, as path's own may have
    the maximum length, and unique: of several processes that write path at once, the last one wins.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            gone = "its folder was moved or deleted"  # one line; a missing file would be a bug
            raise NotADirectoryError(errno.ENOTDIR, gone, str(path)) from error
        if error.filename == str(temporary):
            error.filename = str(path)
        _name_file(error, path)
        raise
    finally:
        with suppress(OSError):  # its error, on a read-only disk, would hide the first one
            temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder: those older than an hour,
    as other processes may be writing there."""
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process was faster
            if path.stat().st_mtime < time.time() - ABANDONED:
                path.unlink()


def write_flushed(path: Path, content: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)  # frees space on a full disk
        _name_file(error, path)
        raise


def _name_file(error: OSError, path: Path) -> None:
    """Add the file's name to an OSError: that of a failed write does not have it."""
    if error.errno and not error.filename:
        error.filename = str(path)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, atomically: a hard link, or a copy where links are impossible."""
    partial = target.with_name(target.name + ".part")  # after a kill found and used again
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        write_flushed(partial, source.read_bytes())
    os.replace(partial, target)


def make_folder(folder: Path, flags: str) -> Path:
    """Make a folder for results and check that it can be written to, before hours are spent. Raises
    UserError if not; flags: those that choose another folder."""
    with writing_to(folder, flags):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


@contextmanager
def writing_to(folder: Path, flags: str) -> Iterator[None]:
    """Turn an OSError, of a folder that lacks space or permissions, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror or error}); free space or fix the "
            f"permissions there, or choose another {flags}"
        ) from error


def lock_folder(folder: Path, command: str, flags: str = "") -> IO | None:
    """Keep a second process from writing to a folder (or to one of several names in it): lock it
    until this process ends, in whatever way, or closes the file that is returned.

    Works among this user's processes on this machine: the locked file is in the temporary folder,
    so that the folder itself does not change. Raises UserError if another process holds the lock:
    another one of this command. flags: those that choose another folder, if any do. Returns None
    where files cannot be locked.
    """
    if not fcntl:
        return None
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    try:
        path = Path(tempfile.gettempdir()) / f"pix2pixHD-{os.getuid()}-{name}.lock"
        file = path.open("w")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # worker processes do not inherit it
    except BlockingIOError as error:
        remedy = "wait until it ends" + (f", or choose another {flags}" if flags else "")
        raise UserError(f"{folder}: another {command} is running there; {remedy}") from error
    except OSError:  # no temporary folder, or no locks in it
        return None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    file.close()
    return lock_folder(folder, command, flags)  # its last owner removed the file meanwhile

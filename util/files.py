"""Writing files whole or not at all: a kill or a full disk leaves the old content."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from util.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all: to a temporary name, flushed, then renamed."""
    partial = path.with_name(path.name + ".part")
    write_flushed(partial, content)
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    """write_bytes for text."""
    write_bytes(path, text.encode(errors="surrogateescape"))  # file names need not be Unicode


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Lend a temporary name beside path; what is written there becomes path, at once and whole.

    If the block raises, path stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # which a failed write lacks
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_flushed(path: Path, content: bytes | memoryview) -> None:
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)  # a full disk needs the room
        error.filename = error.filename or str(path)  # which a failed write lacks
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, at once: a hard link, or a copy where links are not possible."""
    partial = target.with_name(target.name + ".part")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        write_flushed(partial, source.read_bytes())
    os.replace(partial, target)


def make_folder(folder: Path, flags: str) -> Path:
    """Make a folder for results and try to write there. Raises UserError where that cannot be,
    before hours are spent; flags: those that choose another folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise cannot_write(folder, error, flags) from error
    return folder


def cannot_write(folder: Path, error: OSError, flags: str) -> UserError:
    """The error for a folder that lacks room or rights."""
    return UserError(
        f"{folder}: cannot be written to ({error.strerror or error}); make room or give rights "
        f"there, or choose another {flags}"
    )


def lock(path: Path) -> IO | None:
    """Lock a file until this process ends, however it does, or closes what is returned.

    Raises BlockingIOError if another process has locked it. None where files cannot be locked.
    """
    if not fcntl:
        return None
    file = path.open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # worker processes do not inherit it
    except BlockingIOError:
        file.close()
        raise
    except OSError:  # some network file systems
        file.close()
        return None
    return file

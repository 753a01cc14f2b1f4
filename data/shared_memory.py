"""Memory that all processes of a machine share: readers, and the processes of several GPUs."""

import ctypes
import multiprocessing
import os
from io import FileIO

import numpy as np

from util import distributed

TOKEN = 16  # random bytes at the start, by which a process knows that it opened the right file


class SharedMemory:
    """Zeros at first, taken at once. Given back when the last of the processes ends, even by a
    kill. All processes create it together.

    On Linux it is a file without a name, which the others open as /proc/PID/fd/N of the process
    that made it; readers do so too, if they are not forked. Elsewhere, and where processes do not
    see each other (one container for each), each has memory of its own, shared with its readers.
    """

    def __init__(self, size: int) -> None:
        """Raises OSError, in all processes, where there is not enough."""
        self._size = size
        self._array: np.ndarray | None = None
        self._file: FileIO | None = None  # while it is open, others can open it as well
        if not hasattr(os, "memfd_create"):
            self._memory = multiprocessing.RawArray(ctypes.c_uint8, size)
            return
        first = os.environ.get("LOCAL_RANK", "0") == "0"  # ranks go machine by machine
        try:
            made = self._make() if first else None
        except OSError as error:
            made = error
        offered = distributed.gather(made)
        if problems := [one for one in offered if isinstance(one, OSError)]:
            raise problems[0]  # in all processes: the others would go on alone
        nearest = next(one for one in reversed(offered[: distributed.rank() + 1]) if one)
        self._path = (made or (nearest if _is_there(*nearest) else self._make()))[0]

    def array(self) -> np.ndarray:
        """The memory, (size,) uint8."""
        if self._array is None and hasattr(self, "_path"):
            whole = np.memmap(self._path, np.uint8, "r+", TOKEN, (self._size,))
            self._array = whole.view(np.ndarray)
        elif self._array is None:
            self._array = np.frombuffer(self._memory, np.uint8)
        return self._array

    def __getstate__(self) -> dict:
        """For a process that is not forked, which opens the memory anew."""
        return {**vars(self), "_array": None, "_file": None}

    def _make(self) -> tuple[str, bytes]:
        """Make a file without a name, and keep it open: its path, and the token in it."""
        self._file, token = FileIO(os.memfd_create("pix2pixHD"), "r+"), os.urandom(TOKEN)
        os.posix_fallocate(self._file.fileno(), 0, TOKEN + self._size)
        self._file.write(token)
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}", token


def _is_there(path: str, token: bytes) -> bool:
    """Whether the file of another process can be opened and is the one that was meant."""
    try:
        with open(path, "rb") as file:
            return file.read(TOKEN) == token
    except OSError:
        return False

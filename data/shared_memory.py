"""Memory that all processes of a machine share: workers, and the processes of several GPUs."""

import ctypes
import multiprocessing
import os
from io import FileIO

import numpy as np

from util import distributed

TOKEN = 16  # random bytes at the start, by which a process knows that it opened the right file


class SharedMemory:
    """Zeros at first, allocated at once, and freed when the last of the processes ends, even if it
    is killed. All processes create it together.

    On Linux it is an unnamed file, which other processes open as /proc/PID/fd/N of the process that
    created it; so do workers that are not forked. Elsewhere, and where processes cannot see each
    other (each in its own container), each has its own memory, shared with its workers.
    """

    def __init__(self, size: int) -> None:
        """Raises OSError, in all processes, if there is not enough."""
        self._size = size
        self._array: np.ndarray | None = None
        self._file: FileIO | None = None  # while it is open, others can open it as well
        if not hasattr(os, "memfd_create"):
            self._memory = multiprocessing.RawArray(ctypes.c_uint8, size)
            return
        first = os.environ.get("LOCAL_RANK", "0") == "0"  # ranks count machine by machine
        try:
            made = self._make() if first else None
        except OSError as error:
            made = error
        offered = distributed.gather(made)
        if problems := [one for one in offered if isinstance(one, OSError)]:
            raise problems[0]  # in all processes: none may continue alone
        nearest = next(one for one in reversed(offered[: distributed.rank() + 1]) if one)
        self._path = (made or (nearest if _can_open(*nearest) else self._make()))[0]

    def array(self) -> np.ndarray:
        """The memory, (size,) uint8."""
        if self._array is None and hasattr(self, "_path"):
            whole = np.memmap(self._path, np.uint8, "r+", TOKEN, (self._size,))
            self._array = whole.view(np.ndarray)
        elif self._array is None:
            self._array = np.frombuffer(self._memory, np.uint8)
        return self._array

    def __getstate__(self) -> dict:
        """For a process that is not forked, which opens the memory itself."""
        return {**vars(self), "_array": None, "_file": None}

    def _make(self) -> tuple[str, bytes]:
        """Create an unnamed file, and keep it open: returns its path, and the token in it."""
        token = os.urandom(TOKEN)
        self._file = FileIO(os.memfd_create("pix2pixHD"), "r+")
        os.posix_fallocate(self._file.fileno(), 0, TOKEN + self._size)
        self._file.write(token)
        return f"/proc/{os.getpid()}/fd/{self._file.fileno()}", token


def _can_open(path: str, token: bytes) -> bool:
    """Whether the file of another process can be opened and is the expected one."""
    try:
        with open(path, "rb") as file:
            return file.read(TOKEN) == token
    except OSError:
        return False

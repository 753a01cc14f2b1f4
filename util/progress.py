"""Progress of long runs: log lines, bars, seconds per image, memory."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:  # imported by the caller; the data commands start faster without it
    import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


def log(message: str) -> None:
    """Print a line, above a progress bar if there is one. Work continues if that fails: on a full
    disk, or when the program that reads the output has ended."""
    if sys.stdout is None:  # closed from the start
        return
    encoding = sys.stdout.encoding or "utf-8"  # may be unable to represent a file's name
    try:
        tqdm.write(message.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # for good; Python would complain on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        pass


def log_main(message: str) -> None:
    """Print a line, in the main process only."""
    if _is_main():
        log(message)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def warn_if_unwritable(what: str) -> Iterator[None]:
    """Turn an OSError, e.g. from a full disk, into a warning of what could not be written."""
    try:
        yield
    except OSError as error:
        log(f"warning: {what} could not be written ({error.strerror or error}); continuing")


def bar(iterable: Iterable | None = None, **options: object) -> tqdm:
    """A progress bar, shown by the main process and only on a terminal."""
    hidden = not (sys.stderr and sys.stderr.isatty() and _is_main())
    return tqdm(iterable, disable=hidden, dynamic_ncols=True, **options)


def peak_memory(device: "torch.device") -> float:
    """Peak memory so far, in GB: the GPU's, or on a CPU this process's."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if resource is None:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Pace:
    """Seconds per image, and how many of these were spent waiting for data, since the last lap."""

    def __init__(self, total: int, done: int) -> None:
        """total: the images of the whole run; done: how many of them are done already."""
        self.total = total
        self._start, self._done, self._waited = time.perf_counter(), done, 0.0

    def timed(self, batches: Iterator[dict]) -> Iterator[dict]:
        """The batches, measuring the wait for each."""
        start = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def lap(self, done: int) -> tuple[float, float, timedelta]:
        """(seconds per image, of these waiting for data, time left); starts a new lap."""
        now, count = time.perf_counter(), max(1, done - self._done)
        seconds, waited = (now - self._start) / count, self._waited / count
        self._start, self._done, self._waited = now, done, 0.0
        left = min(seconds * (self.total - done), 1e13)  # timedelta holds little more
        return seconds, waited, timedelta(seconds=round(left))

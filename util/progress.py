"""Progress of long runs: log lines, bars, seconds per image, memory."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from tqdm import tqdm

try:
    import resource
except ImportError:  # Windows
    resource = None


def log(message: str) -> None:
    """Print a line, above a progress bar if there is one. Work goes on where nobody can read it: on
    a full disk, or after the program that it was piped to."""
    encoding = sys.stdout.encoding or "utf-8"  # a file's name may be no text in it
    try:
        tqdm.write(message.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # for good; Python would complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        pass


def log_main(message: str) -> None:
    """Print a line in the main process alone."""
    if _is_main():
        log(message)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def warn_if_unwritable(what: str) -> Iterator[None]:
    """Let a full disk or a lost right end in a warning: what could not be written."""
    try:
        yield
    except OSError as error:
        log(f"warning: {what} could not be written ({error.strerror or error}); going on")


def bar(iterable=None, **options) -> tqdm:
    """A progress bar of the first process on a terminal, nothing otherwise."""
    hidden = not sys.stderr.isatty() or not _is_main()
    return tqdm(iterable, disable=hidden, dynamic_ncols=True, **options)


def peak_memory(device: torch.device) -> float:
    """The most memory in use so far, in GB: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if resource is None:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Pace:
    """Seconds per image, and of these waiting for data, since the last look."""

    def __init__(self, total: int, done: int) -> None:
        """total: the images of the whole run; done: of these, before now."""
        self.total = total
        self._start, self._done, self._waited = time.perf_counter(), done, 0.0

    def timed(self, batches: Iterator[dict]) -> Iterator[dict]:
        """The batches, noting how long each is waited for."""
        start = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()

    def look(self, done: int) -> tuple[float, float, timedelta]:
        """(seconds per image, of these waiting for data, time left); starts over."""
        now, count = time.perf_counter(), max(1, done - self._done)
        seconds, waited = (now - self._start) / count, self._waited / count
        self._start, self._done, self._waited = now, done, 0.0
        return seconds, waited, timedelta(seconds=round(seconds * (self.total - done)))

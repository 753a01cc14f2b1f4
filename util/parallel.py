"""Doing the same to many things in several processes, or things in the background."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from util.progress import bar

Thing, Result = TypeVar("Thing"), TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel(
    work: Callable[[Thing], Result], things: Sequence[Thing], workers: int, what: str
) -> Iterator[Result]:
    """work(thing) of each thing, in their order. workers 0: in this process.

    work and its results travel between processes, so both must be picklable. what: names the bar.
    """
    if workers == 0:
        yield from bar(map(work, things), total=len(things), desc=what)
        return
    with ProcessPoolExecutor(workers) as pool:
        # what is left undone when the caller stops early is not started
        yield from bar(pool.map(work, things, chunksize=1), total=len(things), desc=what)


def thread_pool(count: int) -> ThreadPoolExecutor:
    """Threads in which torch computes without threads of its own.

    Each thread whose loops torch splits has OpenMP threads beside the main thread's. With more of
    them than cores, GNU OpenMP sends idle ones to sleep at once, and a training step on a CPU took
    1.5 times as long from its first page on.
    """
    torch = sys.modules.get("torch")  # not every command needs it
    if torch is None:
        return ThreadPoolExecutor(count)
    torch.get_num_threads()  # settles this thread's number, which would be 1 as well
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def in_threads(work: Callable[..., Result], calls: Iterable[tuple]) -> Iterator[Result]:
    """work(*call) of each call, in their order, by threads, while this one makes the next calls."""
    pending: deque[Future] = deque()
    threads = min(8, available_cores())
    with thread_pool(threads) as pool:
        for call in calls:
            pending.append(pool.submit(work, *call))
            if len(pending) > threads:
                yield pending.popleft().result()
        for future in pending:
            yield future.result()


@contextmanager
def background(most: int = 64) -> Iterator[Callable[..., None]]:
    """Lend submit(function, *arguments), which lets threads call functions, e.g. to write files.

    At most so many calls are pending: submit waits for the first of more. Their errors are raised,
    by a later submit or at the end, which waits for all.
    """
    pending: deque = deque()
    with thread_pool(min(16, os.cpu_count() or 1)) as pool:

        def submit(function: Callable, *arguments: object) -> None:
            pending.append(pool.submit(function, *arguments))
            if len(pending) > most:
                pending.popleft().result()

        yield submit
        for call in pending:
            call.result()


class Writer:
    """One thread that does what it is given in that order: files are written while training goes
    on. Errors are raised by a later call of submit or finish; what was given is done even if the
    process ends by an exception."""

    def __init__(self, most: int = 64) -> None:
        """most: calls that may wait; submit waits for the first of more."""
        self.most = most
        self._thread = thread_pool(1)
        self._waiting: deque[Future] = deque()

    def submit(self, function: Callable[..., Result], *arguments: object) -> Future:
        """Have function(*arguments) called; its result is the future's."""
        future = self._thread.submit(function, *arguments)
        self._waiting.append(future)
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > self.most):
            self._waiting.popleft().result()
        return future

    def finish(self) -> None:
        """Wait until all is done."""
        while self._waiting:
            self._waiting.popleft().result()

"""Doing the same to many things in several processes, or things in the background."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

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
    workers = min(workers, len(things))  # a pool may start all of its processes at once
    with ProcessPoolExecutor(workers, initializer=_serve) if workers else nullcontext() as pool:
        results = pool.map(work, things) if pool else map(work, things)
        yield from bar(results, total=len(things), desc=what)


def _serve() -> None:
    """Begin a process of the pool: Ctrl-C reaches all processes of a terminal, and the first one
    answers for them; if it is killed, they would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def thread_pool(count: int) -> ThreadPoolExecutor:
    """Threads in which torch computes without threads of its own.

    Each thread whose loops torch splits has OpenMP threads beside the main thread's. With more of
    them than cores, GNU OpenMP sends idle ones to sleep at once, and a training step on a CPU took
    1.5 times as long from its first page on.
    """
    torch.get_num_threads()  # settles this thread's number, which would be 1 as well
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


class Writer:
    """Threads that do what they are given, one of them in that order, e.g. write files while
    training goes on.

    Errors are raised by a later call of submit or finish; what was given is done even if the
    process ends by an exception.
    """

    def __init__(self, most: int = 64, threads: int = 1) -> None:
        """most: calls that may wait; submit waits for the first of more."""
        self.most = most
        self.pool = thread_pool(threads)
        self._waiting: deque[Future] = deque()

    def submit(self, function: Callable[..., Result], *arguments: object) -> Future:
        """Have function(*arguments) called; its result is the future's."""
        future = self.pool.submit(function, *arguments)
        self._waiting.append(future)
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > self.most):
            self._waiting.popleft().result()
        return future

    def finish(self) -> None:
        """Wait until all is done."""
        while self._waiting:
            self._waiting.popleft().result()


@contextmanager
def background(most: int = 64) -> Iterator[Callable[..., Future]]:
    """Lend the submit of a Writer with several threads; the end of the block waits for all."""
    writer = Writer(most, min(16, os.cpu_count() or 1))
    with writer.pool:
        yield writer.submit
        writer.finish()

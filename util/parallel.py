"""Functions applied to many items by several processes, or called in background threads."""

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

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, what: str
) -> Iterator[Result]:
    """Yield work(item) for each item, in order. workers 0: in this process.

    work and its results pass between processes, so both must be picklable. what: labels the bar.
    """
    workers = min(workers, len(items))  # a pool may start all of its processes at once
    with ProcessPoolExecutor(workers, initializer=_init) if workers else nullcontext() as pool:
        results = pool.map(work, items) if pool else map(work, items)
        yield from bar(results, total=len(items), desc=what)


def _init() -> None:
    """Ignore Ctrl-C, which reaches all processes of a terminal and is handled by the main one, and
    exit when that one is killed: the worker would wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def thread_pool(count: int) -> ThreadPoolExecutor:
    """Threads in which torch starts no threads of its own.

    Each thread in which torch splits loops gets OpenMP threads in addition to the main thread's.
    With more of them than cores, GNU OpenMP puts idle ones to sleep at once, and a training step on
    a CPU took 1.5 times as long once the first page had been written.
    """
    torch.get_num_threads()  # fixes this thread's number, which would become 1 as well
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


class Writer:
    """Threads that make the calls they are given (a single thread: in order), e.g. to write files
    while training continues.

    Errors are raised by a later submit or finish; the calls are made even if the process ends with
    an exception.
    """

    def __init__(self, max_pending: int = 64, threads: int = 1) -> None:
        """max_pending: calls that may be pending; with more, submit waits for the oldest."""
        self.max_pending = max_pending
        self.pool = thread_pool(threads)
        self._waiting: deque[Future] = deque()

    def submit(self, function: Callable[..., Result], *arguments: object) -> Future:
        """Schedule function(*arguments); the future gives its result."""
        future = self.pool.submit(function, *arguments)
        self._waiting.append(future)
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > self.max_pending):
            self._waiting.popleft().result()
        return future

    def finish(self) -> None:
        """Wait for all calls."""
        while self._waiting:
            self._waiting.popleft().result()


@contextmanager
def background(max_pending: int = 64) -> Iterator[Callable[..., Future]]:
    """Yield the submit of a Writer with several threads; leaving the block waits for all calls."""
    writer = Writer(max_pending, min(16, os.cpu_count() or 1))
    with writer.pool:
        yield writer.submit
        writer.finish()

"""Doing the same to many things, in several processes, with a progress bar."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from util.progress import bar

Thing, Result = TypeVar("Thing"), TypeVar("Result")


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

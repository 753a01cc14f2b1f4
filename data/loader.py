"""Batches of a dataset, in an order that depends only on seed and epoch: read ahead, started at any
position, split over ranks."""

import argparse
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, default_collate

from data.aligned_dataset import SceneDataset
from util import distributed
from util.errors import UserError
from util.parallel import thread_pool
from util.progress import bar

T = TypeVar("T")


@dataclass
class EpochSampler:
    """Yields lists of (epoch, index): the batches of one epoch from the start-th on.

    The order depends only on (seed, epoch). A rank takes its share of every whole batch; if the
    last batch has fewer images than ranks, ranks without an image get the batch's first.
    """

    size: int
    batch_size: int
    shuffle: bool
    seed: int
    rank: int
    world_size: int
    epoch: int = 1
    start: int = 0

    def whole_batches(self) -> list[list[int]]:
        """The indices of each batch from the start-th on, over all ranks."""
        order = list(range(self.size))
        if self.shuffle:
            seed = (self.seed * 1_000_003 + self.epoch) % 2**63
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(self.size, generator=generator).tolist()
        starts = range(self.start * self.batch_size, self.size, self.batch_size)
        return [order[i : i + self.batch_size] for i in starts]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.whole_batches():
            share = batch[self.rank :: self.world_size] or batch[:1]
            yield [(self.epoch, index) for index in share]


class Loader:
    """The batches of a dataset, prefetched by worker processes that live as long as the loader, or,
    with workers 0, by threads of this process.

    A batch is SceneDataset's item with a leading batch dimension; "path" is a list, "pictures"
    the size of the whole batch over all ranks, "weight" that of this rank's mean loss in the mean
    over ranks (1 if all have the same share).
    """

    def __init__(
        self,
        dataset: SceneDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        where = distributed.rank(), distributed.world_size()
        self.sampler = EpochSampler(len(dataset), batch_size, shuffle, dataset.seed, *where)
        workers = min(workers, len(self))  # a process more would have no batch to read
        self._read = read_ahead(dataset, self.sampler, workers, pin_memory)

    def __len__(self) -> int:
        """The number of batches in a whole epoch."""
        return -(-self.sampler.size // self.sampler.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict]:
        """The batches of an epoch from the start-th on. Raises UserError for a bad file."""
        self.sampler.epoch, self.sampler.start = epoch, start
        for whole, batch in zip(self.sampler.whole_batches(), self._read()):
            if isinstance(batch, UserError):
                try:
                    raise batch
                finally:
                    del batch  # the error refers to this frame: a cycle, with the workers in it
            share = len(whole[self.sampler.rank :: self.sampler.world_size])
            batch["pictures"] = len(whole)
            batch["weight"] = share * self.sampler.world_size / len(whole)
            yield batch

    def __iter__(self) -> Iterator[dict]:
        return self.epoch(1)


def read_ahead(
    dataset: SceneDataset, sampler: Iterable[Sequence], workers: int, pin_memory: bool
) -> Callable[[], Iterator[dict | UserError]]:
    """Returns a function that reads all batches of a sampler on each call: by worker processes,
    which live as long as the function, or with workers 0 by threads."""
    if not workers:
        return partial(_read_by_threads, dataset, sampler, pin_memory)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        # not Python 3.14's default, a fork server: a SIGTERM to all processes of a job ends it, and
        # with it all workers; each of them would also import torch
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        # at most 8 batches in flight: containers have 64 MB of shared memory by default
        prefetch_factor=2 if workers <= 4 else 1,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=True,
        worker_init_fn=_ignore_signals,
        # a separate one: else each epoch would advance the generator that dropout uses, and a
        # resumed run, which starts one more epoch, would differ
        generator=torch.Generator(),
    )
    return partial(iter, loader)


def _read_by_threads(
    dataset: SceneDataset, sampler: Iterable[Sequence], pin_memory: bool
) -> Iterator[dict | UserError]:
    """Batches in the sampler's order, two of them always being read ahead by threads."""

    def read(keys: Sequence) -> dict | UserError:
        batch = collate([dataset[key] for key in keys])
        if not pin_memory or isinstance(batch, UserError):
            return batch
        return {k: v.pin_memory() if torch.is_tensor(v) else v for k, v in batch.items()}

    pool = thread_pool(2)
    pending = deque()
    try:
        for keys in sampler:
            pending.append(pool.submit(read, keys))
            if len(pending) > 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also if an epoch is left early
        pool.shutdown(cancel_futures=True)


def _ignore_signals(worker: int) -> None:
    """Put a worker into a process group of its own, and let it obey only the main process's
    SIGTERM. Terminals and tools like timeout signal a whole group, schedulers (scancel, systemd)
    all processes of a job; but the main process needs its workers to finish the current step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey_main_process, daemon=True).start()


def _obey_main_process() -> None:
    """Exit when the main process sends SIGTERM."""
    main = multiprocessing.parent_process().pid
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != main:
        pass
    os._exit(0)


def collate(items: list[dict | UserError]) -> dict | UserError:
    """Stack items into a batch; a UserError among them is returned instead of the batch."""
    for item in items:
        if isinstance(item, UserError):
            return item
    sizes = {tuple(item["label"].shape[-2:]) for item in items}
    if len(sizes) > 1:
        listed = ", ".join(
            f"{item['path']} is {item['label'].shape[-1]}x{item['label'].shape[-2]}"
            for item in items
        )
        return UserError(
            f"the images of a batch must have the same size, but {listed}; use --batchSize 1"
        )
    if len(items) == 1:  # nothing to stack: avoid the copy
        return {k: v[None] if torch.is_tensor(v) else [v] for k, v in items[0].items()}
    return default_collate(items)


# -- The scenes of a data set, split over the processes that test or encode them --------------


def own_scenes(dataset: SceneDataset) -> range:
    """The indices of this process's share."""
    return range(distributed.rank(), len(dataset), distributed.world_size())


def read_scenes(
    dataset: SceneDataset,
    scenes: Sequence[int],
    opt: argparse.Namespace,
    what: str,
    batch_size: int = 1,
) -> Iterator[tuple[Sequence[int], dict | UserError]]:
    """(indices, batch) over these scenes in order, with a progress bar; what: its name."""
    groups = [scenes[i : i + batch_size] for i in range(0, len(scenes), batch_size)]
    read = read_ahead(dataset, groups, min(opt.nThreads, len(groups)), bool(opt.gpu_ids))
    with bar(total=len(scenes), desc=what, unit="image") as progress:
        # strict reads to the end: a Ctrl-C while an unfinished generator is closed would be ignored
        for indices, batch in zip(groups, read(), strict=True):
            yield indices, batch
            progress.update(len(indices))


def own_batches(
    dataset: SceneDataset, opt: argparse.Namespace, what: str
) -> Iterator[tuple[int, dict]]:
    """(index, batch of one) over this process's scenes. Raises UserError for a bad file."""
    for (index,), batch in read_scenes(dataset, own_scenes(dataset), opt, what):
        if isinstance(batch, UserError):
            raise batch
        yield index, batch


def gather_by_index(own: dict[int, T]) -> dict[int, T]:
    """The results of all processes by index, in order."""
    return dict(sorted(item for part in distributed.gather(own) for item in part.items()))

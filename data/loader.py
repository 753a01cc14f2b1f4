"""From a dataset to batches: in an order that seed and epoch fix, from any position, over ranks."""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    Sampler,
    SequentialSampler,
    default_collate,
)

from data.aligned_dataset import AlignedDataset
from util.errors import UserError
from util.parallel import thread_pool


class EpochSampler(Sampler):
    """Yields lists of (epoch, index): the batches of one epoch from a position on.

    The order depends on (seed, epoch) alone. A rank takes its share of every whole batch; where
    the last batch has fewer images than ranks, those left without one get the batch's first.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 1
        self.start = 0  # in batches

    def whole_batches(self) -> list[list[int]]:
        """The indices of each batch of the epoch, over all ranks."""
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        return [order[i : i + self.batch_size] for i in range(0, self.size, self.batch_size)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.whole_batches()[self.start :]:
            share = batch[self.rank :: self.world] or batch[:1]
            yield [(self.epoch, index) for index in share]

    def __len__(self) -> int:
        return -(-self.size // self.batch_size) - self.start


class Loader:
    """The batches of a dataset, read ahead of their use: by worker processes that live as long as
    the loader, or, with workers 0, by threads of this process.

    A batch is AlignedDataset's item with a leading batch dimension; "path" is a list, "pictures"
    the size of the whole batch over all ranks, "weight" what this rank's mean loss counts in the
    mean over ranks (1 if all have the same share).
    """

    def __init__(
        self,
        dataset: AlignedDataset,
        batch_size: int,
        *,
        shuffle: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.dataset = dataset
        self.sampler = EpochSampler(
            len(dataset), batch_size, shuffle=shuffle, seed=dataset.seed, rank=rank, world=world
        )
        self._batches = read_ahead(dataset, self.sampler, workers, pin_memory)

    def __len__(self) -> int:
        """The number of batches in a whole epoch."""
        return -(-self.sampler.size // self.sampler.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[dict]:
        """The batches of an epoch from the start-th on. Raises UserError for a bad file."""
        self.sampler.epoch, self.sampler.start = epoch, start
        wholes = self.sampler.whole_batches()[start:]
        for whole, batch in zip(wholes, self._batches):
            if isinstance(batch, UserError):
                try:
                    raise batch
                finally:
                    del batch  # the error knows this frame: a cycle, with the workers in it
            share = len(whole[self.sampler.rank :: self.sampler.world])
            batch["pictures"] = len(whole)
            batch["weight"] = share * self.sampler.world / len(whole)
            yield batch

    def __iter__(self) -> Iterator[dict]:
        return self.epoch(1)


def read_ahead(
    dataset: Dataset, sampler: Iterable[list], workers: int, pin_memory: bool
) -> Iterable[dict | UserError]:
    """The batches that a sampler lists, read by worker processes or, with workers 0, threads."""
    if not workers:
        return ThreadedBatches(dataset, sampler, pin_memory)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        # 8 batches on their way at most: containers give 64 MB of shared memory by default
        prefetch_factor=2 if workers <= 4 else 1,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=True,
        worker_init_fn=_leave_signals,
        # the loader's own: else each epoch would draw from the generator that dropout uses, and
        # a resumed run, which starts one more, would differ
        generator=torch.Generator(),
    )


class ThreadedBatches:
    """Batches of a dataset in the sampler's order, always two of them being read by threads."""

    def __init__(self, dataset: Dataset, sampler: Iterable[list], pin_memory: bool) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.pin_memory = pin_memory

    def __iter__(self) -> Iterator[dict | UserError]:
        pool = thread_pool(2)
        coming = deque()
        try:
            for keys in self.sampler:
                coming.append(pool.submit(self._read, keys))
                if len(coming) > 2:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:  # also where an epoch is left early
            pool.shutdown(cancel_futures=True)

    def _read(self, keys: list) -> dict | UserError:
        batch = collate([self.dataset[key] for key in keys])
        if not self.pin_memory or isinstance(batch, UserError):
            return batch
        return {k: v.pin_memory() if torch.is_tensor(v) else v for k, v in batch.items()}


def _leave_signals(worker: int) -> None:
    """Terminals and tools like timeout signal a whole group of processes; what that means is the
    main process's business, and it needs its workers for the step in hand. So they form groups of
    their own; the main process still ends them by name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()


def batches_in_order(
    dataset: Dataset, batch_size: int = 1, workers: int = 0, pin_memory: bool = False
) -> Iterator[dict]:
    """Every item once, in order, in batches. Raises UserError for a bad file."""
    in_order = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    for batch in read_ahead(dataset, in_order, workers, pin_memory):
        if isinstance(batch, UserError):
            raise batch
        yield batch


def collate(items: list[dict | UserError]) -> dict | UserError:
    """Stack items to a batch; the first UserError among them stands for the whole batch."""
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
            f"the images of a batch must have one size, but {listed}; crop them to one "
            "(--resize_or_crop scale_width_and_crop) or use --batchSize 1"
        )
    if len(items) == 1:  # nothing to stack: spare the copy
        return {k: v[None] if torch.is_tensor(v) else [v] for k, v in items[0].items()}
    return default_collate(items)

"""The scenes of a data set, shared out over the processes that test or encode them."""

import argparse
from collections.abc import Iterator

from torch.utils.data import Subset

from data.aligned_dataset import AlignedDataset
from data.loader import batches_in_order
from util import distributed
from util.progress import bar


def own_batches(
    dataset: AlignedDataset, opt: argparse.Namespace, what: str, batch_size: int = 1
) -> Iterator[tuple[range, dict]]:
    """(indices, batch) over this process's share of the scenes, in order, with a progress bar.

    what: names the bar. Raises UserError for a bad file.
    """
    own = range(distributed.rank(), len(dataset), distributed.world())
    groups = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
    loader = batches_in_order(Subset(dataset, own), batch_size, opt.nThreads, bool(opt.gpu_ids))
    with bar(total=len(own), desc=what, unit="image") as progress:
        for indices, batch in zip(groups, loader):
            yield indices, batch
            progress.update(len(indices))


def of_all_scenes(own: dict[int, object]) -> dict[int, object]:
    """The results of all processes by index, in order."""
    return dict(sorted(item for part in distributed.gather(own) for item in part.items()))

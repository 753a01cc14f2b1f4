"""The data set and loader that a command's flags describe."""

import argparse
from pathlib import Path

import numpy as np

from data.aligned_dataset import AlignedDataset, Geometry, find_files
from data.cache import create_cache
from data.files import read_integers, scan_folder
from data.loader import Loader
from util import distributed
from util.errors import UserError, brief


def create_dataset(
    opt: argparse.Namespace, *, training: bool, load_photos: bool = True, smallest: int = 1
) -> AlignedDataset:
    """The data set of opt.dataroot and opt.phase. Raises UserError for what is wrong with it.

    smallest: pixels that a scaled and cropped picture must have each way.
    """
    geometry = Geometry(
        opt.resize_or_crop, opt.loadSize, opt.fineSize, flip=training and not opt.no_flip
    )
    dataset = AlignedDataset(
        opt.dataroot,
        opt.phase,
        opt.label_nc,
        geometry,
        use_instances=not opt.no_instance,
        load_photos=load_photos,
        load_features=opt.load_features,
        feat_num=opt.feat_num,
        max_size=opt.max_dataset_size,
        ignore_label=opt.ignore_label,
        seed=opt.seed,
        smallest=smallest,
    )
    dataset.maps = create_cache(opt.cache, dataset, Path(opt.dataroot) / ".cache")
    return dataset


def whole_images(options: dict) -> dict:
    """The options that differ where whole images are shown: random crops are for training."""
    mode = options.get("resize_or_crop")
    if mode == "resize_and_crop":
        return {"fineSize": options.get("loadSize", 1024)}
    whole = {"crop": "none", "scale_width_and_crop": "scale_width"}
    return {"resize_or_crop": whole[mode]} if mode in whole else {}


def create_loader(opt: argparse.Namespace, smallest: int = 1) -> Loader:
    """The batches to train on: shuffled unless --serial_batches. smallest: see create_dataset."""
    dataset = create_dataset(opt, training=True, smallest=smallest)
    if opt.batchSize > len(dataset):
        raise UserError(
            f"--batchSize {opt.batchSize}: {opt.dataroot} has only {len(dataset)} scenes"
        )
    return Loader(
        dataset,
        opt.batchSize,
        shuffle=not opt.serial_batches,
        workers=opt.nThreads,
        pin_memory=bool(opt.gpu_ids),
        rank=distributed.rank(),
        world=distributed.world(),
    )


def photographs(opt: argparse.Namespace) -> dict[str, Path]:
    """The photographs of opt.phase by scene; empty where there are none."""
    names = [f"{opt.phase}_img"] if opt.label_nc else [f"{opt.phase}_B", f"{opt.phase}B"]
    folders = [Path(opt.dataroot) / name for name in names]
    there = [folder for folder in folders if folder.is_dir() and any(folder.iterdir())]
    found, problems = scan_folder(there[0]) if there else ({}, [])
    if found and problems:
        raise UserError(brief(problems))
    return found


def count_labels(dataroot: str, phase: str, ignore_label: int | None = None) -> int:
    """The number of classes that the label maps of a phase need: their largest label plus 1."""
    files = find_files(dataroot, phase, 1, use_instances=False, load_photos=False)["label"]
    largest = 0
    for path in files.values():
        label = np.asarray(read_integers(path, "label"))
        known = label[label != ignore_label] if ignore_label is not None else label
        largest = max(largest, int(known.max(initial=0)))
    return largest + 1

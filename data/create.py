"""The data set and loader that a command's flags describe."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.aligned_dataset import AlignedDataset, Geometry
from data.arrays import read_array
from data.augment import Augmentation
from data.cache import create_cache
from data.files import MAX_CLASSES, list_files, read_rgb, scan_folder
from data.kinds import image_kind, scene_kinds
from data.loader import Loader
from data.values import ROLES, TYPES, Values, image_values, refuse_beyond_type
from util import distributed
from util.errors import UserError, brief
from util.run.checkpoints import is_saved, run_dir, saved_options

T = TypeVar("T")

MAX_MEASURED = 200  # files that --ROLE_range auto reads, evenly spaced


def create_dataset(
    opt: argparse.Namespace,
    *,
    training: bool,
    load_photos: bool = True,
    min_side: int = 1,
    max_scenes: int | None = None,
) -> AlignedDataset:
    """The data set of opt.dataroot and opt.phase. Raises UserError for what is wrong with it.

    min_side: the minimum height and width of a scaled and cropped image. max_scenes: at most this
    many, evenly spaced. For GPUs, training photographs stay bytes, a quarter of the size of floats.
    """
    flip = training and not opt.no_flip
    geometry = Geometry(opt.resize_or_crop, opt.loadSize, opt.fineSize, flip, min_side)
    augmented = training and opt.augment
    dataset = AlignedDataset(
        opt.dataroot,
        opt.phase,
        opt.label_nc,
        geometry,
        max_size=opt.max_dataset_size,
        seed=opt.seed,
        augment=Augmentation(opt.augment, opt.ignore_label, opt.label_nc) if augmented else None,
        image_bytes=training and bool(opt.gpu_ids),
        **kind_arguments(opt),
        load_photos=load_photos,
        loss_weights=training and opt.loss_weights,
    )
    dataset.scenes = evenly_spaced(dataset.scenes, max_scenes)
    dataset.read_maps = create_cache(opt.cache, dataset, Path(opt.dataroot) / ".cache")
    return dataset


def evenly_spaced(items: Sequence[T], most: int | None) -> list[T]:
    """At most this many of the items, evenly spaced: the same ones each time. None: all."""
    count = len(items) if most is None else min(most, len(items))
    chosen = np.linspace(0, len(items) - 1, count).round().astype(int)
    return [items[index] for index in chosen]


def kind_arguments(opt: argparse.Namespace) -> dict[str, object]:
    """The arguments of scene_kinds, from the flags, for the maps that test.py reads as well."""
    return {
        "use_instances": not opt.no_instance,
        "load_features": opt.load_features,
        "feat_num": opt.feat_num,
        "ignore_label": opt.ignore_label,
        "input_values": image_values(opt, "input"),
        "output_values": image_values(opt, "output"),
        "cond_values": image_values(opt, "cond") if opt.cond_nc else None,
    }


def without_crops(options: dict) -> dict:
    """The options that change for whole images: random crops are only for training."""
    mode = options.get("resize_or_crop")
    if mode == "resize_and_crop":
        return {"fineSize": options.get("loadSize", 1024)}
    whole = {"crop": "none", "scale_width_and_crop": "scale_width"}
    return {"resize_or_crop": whole[mode]} if mode in whole else {}


def create_loader(opt: argparse.Namespace, dataset: AlignedDataset) -> Loader:
    """The batches to train on: shuffled unless --serial_batches. Raises UserError if the data
    set has too few scenes, or several sizes, for --batchSize, or machines have different scenes."""
    found = f"{len(dataset)} (names {dataset.names_crc:08x})"
    distributed.agree(found, f"have different scenes in {opt.dataroot}", "give all the same files")
    if opt.batchSize > len(dataset):
        raise UserError(
            f"--batchSize {opt.batchSize}: {opt.dataroot} has only {len(dataset)} scenes; give "
            f"--batchSize {len(dataset)} or less"
        )
    stacks_images = opt.batchSize > distributed.world_size()
    if stacks_images and not opt.serial_batches and not dataset.has_one_size:
        raise UserError(
            f"--batchSize {opt.batchSize}: the scenes of {opt.dataroot} have several sizes; crop "
            "them to one (--resize_or_crop scale_width_and_crop and a --fineSize that all have) or "
            "use --batchSize 1"
        )
    return Loader(
        dataset,
        opt.batchSize,
        shuffle=not opt.serial_batches,
        workers=opt.nThreads,
        pin_memory=bool(opt.gpu_ids),
    )


def photographs(opt: argparse.Namespace) -> dict[str, Path]:
    """The photographs of opt.phase by scene; empty if there are none."""
    names = scene_kinds(opt.label_nc)["image"].names(opt.phase)
    folders = [Path(opt.dataroot) / name for name in names]
    filled = [folder for folder in folders if folder.is_dir() and any(folder.iterdir())]
    found, problems = scan_folder(filled[0]) if filled else ({}, [])
    if found and problems:
        raise UserError(brief(problems))
    return found


def resolve_data_flags(opt: argparse.Namespace) -> list[str]:
    """Before training: set what the flags leave to the data (--label_nc auto, the types and ranges
    of images) from the files of opt.phase. Returns lines that say so. A continued run keeps the
    ranges that it started with."""
    lines = []
    if opt.label_nc == "auto":
        opt.label_nc = count_labels(opt.dataroot, opt.phase, opt.ignore_label)
        lines.append(f"--label_nc {opt.label_nc}")
    return lines + [line for role in used_roles(opt) for line in resolve_role(opt, role)]


def used_roles(opt: argparse.Namespace) -> list[str]:
    """Which of "input", "output" and "cond" have images."""
    used = {"input": opt.label_nc == 0, "output": True, "cond": opt.cond_nc}
    return [role for role in ROLES if used[role]]


def resolve_role(opt: argparse.Namespace, role: str) -> list[str]:
    """Set opt.ROLE_type and opt.ROLE_range from the files of a role: see resolve_data_flags."""
    kinds = scene_kinds(opt.label_nc != 0, cond_values=Values() if opt.cond_nc else None)
    kind = kinds[ROLES[role]]  # for its folders alone: label_nc may still be "auto"
    files = list(list_files(kind.folder(Path(opt.dataroot), opt.phase)).values())
    channels, given = getattr(opt, f"{role}_nc"), getattr(opt, f"{role}_range")
    dtype = getattr(opt, f"{role}_type") or _type_of_first(files, channels)
    setattr(opt, f"{role}_type", dtype)
    continues = opt.continue_train and is_saved(run_dir(opt) / "latest_net_G.pth")
    before = saved_options(run_dir(opt)) if continues else {}
    same_type = before.get(f"{role}_type") in (None, dtype)
    if isinstance(given, str) and same_type and isinstance(before.get(f"{role}_range"), list):
        given = before[f"{role}_range"]
    if given == "type":
        if TYPES[dtype] is None:
            raise UserError(
                f"{files[0]}: numbers of type {dtype} have no range of their own: give "
                f"--{role}_range LOW,HIGH, or auto"
            )
        given = TYPES[dtype]
    if given == "auto":
        given = measured_range(files, image_kind(Values(channels, dtype), role).read)
    refuse_beyond_type(role, dtype, given)
    setattr(opt, f"{role}_range", list(given))
    values = image_values(opt, role)
    if values.is_rgb8:
        return []
    low, high = given
    line = f"{role} images: {values.channels} x {dtype}, {low:g} to {high:g} as -1 to 1"
    pages = values.channels > 1 and files[0].suffix.lower() in (".tif", ".tiff")
    return [line + ("; bands or pages of TIFF files are channels" if pages else "")]


def _type_of_first(files: list[Path], channels: int) -> str:
    """The type of the first file that can be read: a damaged one says nothing about the rest."""
    for path in files:
        with suppress(UserError):
            return _type_of(path, channels)
    return _type_of(files[0], channels)


def _type_of(path: Path, channels: int) -> str:
    """The type of a file's numbers. What Pillow converts to 8-bit RGB counts as uint8."""
    if channels == 3:
        with suppress(UserError):
            read_rgb(path)
            return "uint8"
    return read_array(path).dtype.name


def measured_range(files: list[Path], read: Callable) -> tuple[float, float]:
    """The range of --ROLE_range auto: from the lowest to the highest of the files' 0.1 and 99.9
    percentiles. read: a Kind's, so that what is measured is what training sees."""
    chosen = evenly_spaced(files, MAX_MEASURED)
    bounds = [np.percentile(np.asarray(read(path)), (0.1, 99.9)) for path in chosen]
    low, high = float(np.min(bounds)), float(np.max(bounds))
    if low >= high:
        raise UserError(f"{files[0].parent}: all numbers are {low:g}; give a range LOW,HIGH")
    return low, high


def count_labels(dataroot: str, phase: str, ignore_label: int | None = None) -> int:
    """The number of classes that the label maps of a phase need: their largest label plus 1."""
    kind = scene_kinds(1)["label"]
    files = list_files(kind.folder(Path(dataroot), phase)).values()
    count = 1
    for path in files:
        label = np.asarray(kind.read(path))
        count = max(count, 1 + int(label[label != ignore_label].max(initial=0)))
        if count > MAX_CLASSES:
            raise UserError(
                f"{path}: label {count - 1}, but there are at most {MAX_CLASSES} classes; fix "
                "it, or if it stands for no class, give --ignore_label"
            )
    return count

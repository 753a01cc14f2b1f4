"""Objects to add to scenes: cut from the instance maps of a data set, with their features.

    python -m editor.library --name NAME

Writes checkpoints/NAME/object_library.npz, whose objects edit.py offers.
"""

import argparse
import io
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from data.create import create_dataset, photographs
from data.loader import own_batches
from models import create_encoder
from models.build import uses_features
from models.inference_model import InferenceModel, to_uint8
from models.masks import components
from models.run_encoder import find_encoder, record_encoder
from options.edit_options import LibraryOptions
from util.errors import UserError, first_line, run
from util.files import checksum_of, make_folder, write_bytes
from util.pages.colours import class_name, palette
from util.progress import log
from util.run.checkpoints import run_dir
from util.run.resume import FOLDER_FLAGS
from util.setup import first_device, seed_everything, set_up_torch

FILE = "object_library.npz"
THUMBNAIL = 64  # pixels each way
MIN_SHARE, MAX_SHARE = 1 / 2000, 1 / 6  # of the image's area
MIN_PIXELS = 24
# Cityscapes: poles, lights, signs, trees and things; a piece of road or wall is not an object
_CITYSCAPES_OBJECTS = {17, 18, 19, 20, 21, *range(24, 34)}
MIN_PIECE = 0.9  # share of an instance that must be in one piece: excludes a car behind a pole


@dataclass
class LibraryObject:
    """label: its class; mask (h, w) bool; feature (feat_num,) float32, None for a model without
    features; thumbnail (64, 64, 4) uint8, transparent around the object."""

    label: int
    mask: np.ndarray
    feature: np.ndarray | None
    thumbnail: np.ndarray


def build(opt: argparse.Namespace, device: torch.device) -> list[LibraryObject]:
    """At most opt.per_class objects of every class, sampled uniformly from all scenes."""
    encoder = create_encoder(opt, device, run_dir(opt)) if uses_features(opt) else None
    dataset = create_dataset(opt, training=False, load_photos=bool(photographs(opt)))
    rng = random.Random(opt.seed)
    seen: Counter[int] = Counter()
    kept: defaultdict[int, list[LibraryObject]] = defaultdict(list)
    for _, batch in own_batches(dataset, opt, "cutting"):
        for found in objects_of(batch, encoder, opt):
            of_class = kept[found.label]
            seen[found.label] += 1
            if len(of_class) < opt.per_class:
                of_class.append(found)
            elif (place := rng.randrange(seen[found.label])) < opt.per_class:
                of_class[place] = found  # keeps all seen with equal probability
    return [one for label in sorted(kept) for one in kept[label]]


def objects_of(
    batch: dict, encoder: InferenceModel | None, opt: argparse.Namespace
) -> Iterator[LibraryObject]:
    """The objects of a scene (a batch of one) that are whole and neither tiny nor huge."""
    label = batch["label"][0, 0].numpy()
    photo = features = None
    if "image" in batch:
        (photo,) = to_uint8(batch["image"])
    if encoder is not None:
        if photo is None:
            raise UserError(f"{opt.dataroot}: no photographs of --phase {opt.phase} to encode")
        regions = encoder.regions(batch["label"], batch.get("inst"))
        features = encoder.encode_regions(batch["image"], regions)[0].numpy()
    inst = batch["inst"][0, 0].numpy() if "inst" in batch else None
    for place, mask in whole_objects(label, inst):
        classes, counts = np.unique(label[place][mask], return_counts=True)
        kind = int(classes[counts.argmax()])
        if kind == opt.ignore_label or (opt.label_nc == 35 and kind not in _CITYSCAPES_OBJECTS):
            continue
        plain = np.broadcast_to(palette(opt.label_nc)[kind], (*mask.shape, 3))
        colours = plain if photo is None else photo[place]
        feature = None if features is None else features[(slice(None), *place)][:, mask][:, 0]
        yield LibraryObject(kind, mask, feature, thumbnail(colours, mask))


def whole_objects(
    label: np.ndarray, inst: np.ndarray | None
) -> list[tuple[tuple[slice, slice], np.ndarray]]:
    """Where the objects of a scene are, with their masks: connected, clear of the image's border
    and, for numbered instances, (nearly) all that is visible of one."""
    ids = label if inst is None else inst
    pieces = components(ids)
    height, width = pieces.shape
    smallest, largest = max(MIN_PIXELS, MIN_SHARE * height * width), MAX_SHARE * height * width
    areas = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True))))
    found = []
    for number, place in enumerate(ndimage.find_objects(pieces), start=1):
        rows, columns = place
        inside = rows.start and columns.start and rows.stop < height and columns.stop < width
        mask = pieces[place] == number
        area = int(mask.sum())
        own = int(ids[place][mask][0])  # from 2**31 on stored as a negative number (data.files)
        whole = inst is None or own % 2**32 < 1000 or area >= MIN_PIECE * areas[own]
        if inside and whole and smallest <= area <= largest:
            found.append((place, mask))
    return found


def thumbnail(colours: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An object as a small image: (h, w, 3) uint8 and (h, w) bool -> (64, 64, 4) uint8."""
    cut = Image.fromarray(np.dstack([colours, mask.astype(np.uint8) * 255]))
    scale = THUMBNAIL / max(cut.size)
    width, height = (max(1, round(side * scale)) for side in cut.size)
    image = Image.new("RGBA", (THUMBNAIL, THUMBNAIL))
    corner = (THUMBNAIL - width) // 2, (THUMBNAIL - height) // 2
    image.paste(cut.resize((width, height), Image.Resampling.BICUBIC), corner)
    return np.asarray(image)


def write_library(path: Path, objects: list[LibraryObject]) -> None:
    """Write objects as an .npz file: an array for each field, and one for each mask."""
    features = [() if one.feature is None else one.feature for one in objects]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        label=np.array([one.label for one in objects], np.int32),
        feature=np.array(features, np.float32),
        thumbnail=np.array([one.thumbnail for one in objects]),
        **{f"mask{k}": one.mask for k, one in enumerate(objects)},
    )
    write_bytes(path, buffer.getvalue())


def load_library(path: Path, label_nc: int, feat_num: int) -> list[LibraryObject]:
    """Read objects back; none if there is no file. feat_num: 0 for a model without features.

    Raises UserError for a damaged file, or one made with another model.
    """
    if not path.is_file():
        return []
    try:
        with np.load(path, allow_pickle=False) as file:
            label, feature, thumbnails = file["label"], file["feature"], file["thumbnail"]
            masks = [file[f"mask{k}"] for k in range(len(label))]
        count = len(label)
        kinds = label.dtype, feature.dtype, thumbnails.dtype
        shapes = (count,), (count, THUMBNAIL, THUMBNAIL, 4)
        as_written = kinds == (np.int32, np.float32, np.uint8)
        as_written &= count > 0 and (label.shape, thumbnails.shape) == shapes
        as_written &= all(mask.dtype == bool and mask.ndim == 2 and mask.any() for mask in masks)
        if not as_written or not np.isfinite(feature).all():
            raise ValueError("its arrays do not fit together")
    except Exception as error:  # a damaged file fails in many ways
        text = first_line(error)
        raise UserError(
            f"{path}: not an object library ({text}); make a new one with python -m editor.library"
        ) from error
    if feature.shape != (count, feat_num) or not 0 <= label.min() <= label.max() < label_nc:
        raise UserError(
            f"{path}: features {feature.shape} and classes up to {label.max()} of another model; "
            "make a new one with python -m editor.library"
        )
    features = feature if feat_num else [None] * count
    return [LibraryObject(*one) for one in zip(label.tolist(), masks, features, thumbnails)]


def main() -> None:
    opt = LibraryOptions().parse()
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    if not run_dir(opt).is_dir():
        raise UserError(f"{run_dir(opt)}: no such run; check --name and --checkpoints_dir")
    make_folder(run_dir(opt), FOLDER_FLAGS)
    encoder, _ = find_encoder(run_dir(opt), opt, run_dir(opt))
    made_by = checksum_of(encoder)  # before: training may save another one meanwhile
    with torch.inference_mode():
        objects = build(opt, first_device(opt))
    if not objects:
        raise UserError(
            f"{opt.dataroot}: no object of --phase {opt.phase} is whole, inside its image, and "
            f"between {MIN_SHARE:.2%} and {MAX_SHARE:.0%} of its area"
        )
    path = run_dir(opt) / FILE
    write_library(path, objects)
    record_encoder(path, made_by)
    for label, count in sorted(Counter(one.label for one in objects).items()):
        log(f"  {class_name(label, opt.label_nc)}: {count} objects")
    log(f"{len(objects)} objects in {path}")


if __name__ == "__main__":
    run(main)

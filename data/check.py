"""Read a whole data set once and report everything that training would trip over.

    python -m data.check --dataroot datasets/cityscapes

runs scripts/check_data.py, which knows train.py's flags and the networks' needs.
"""

import argparse
import runpy
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data.aligned_dataset import Geometry, size_problems
from data.arrays import NUMPY, TIFF, file_size
from data.create import kind_arguments
from data.files import (
    MAX_CLASSES,
    ORIENTATION,
    is_turned,
    pairing_problems,
    scan_folder,
    shown_kind,
)
from data.kinds import Kind, label_counts, scene_kinds
from data.values import ROLES, Values, image_values
from util.errors import UserError
from util.pages.colours import CITYSCAPES_NAMES
from util.parallel import parallel


@dataclass
class SceneFindings:
    """What reading the files of one scene showed."""

    files: dict[str, Path]  # by kind: "label", "inst", "image", "cond", ...
    problems: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None  # (width, height) of the label map
    classes: Counter = field(default_factory=Counter)  # label -> pixels
    instances: Counter = field(default_factory=Counter)  # label -> instances mostly of it
    pixels: int = 0  # that have both a label and an instance id
    things: int = 0  # of these, pixels whose id is class*1000 + n
    mismatches: int = 0  # of these, pixels whose id is not of their class in Cityscapes' scheme
    inst_is_empty: bool = False  # every pixel is instance 0, although there are several classes
    # of images, by kind: lowest and highest number, and a histogram, see BINS
    values: dict[str, tuple[float, float, np.ndarray]] = field(default_factory=dict)


@dataclass
class Report:
    """The findings about a whole data set."""

    scenes: list[SceneFindings]
    problems: list[str]
    notes: list[str]


def check(opt: argparse.Namespace, min_side: int = 1) -> Report:
    """Read every file that train.py with these flags would read.

    min_side: the minimum height and width of a scaled and cropped image. Raises UserError if
    there is no such data set at all.
    """
    label_nc = MAX_CLASSES if opt.label_nc == "auto" else opt.label_nc
    kinds = scene_kinds(label_nc, **kind_arguments(opt), loss_weights=opt.loss_weights)
    files, problems = _scan(opt, kinds)
    found = [
        {kind: paths[name] for kind, paths in files.items() if name in paths}
        for name in set().union(*files.values())
    ]
    # in training's order, so that --max_dataset_size takes the same scenes
    found = sorted(found, key=lambda paths: [*paths.values()])[: opt.max_dataset_size]
    if opt.batchSize > max(len(found), 1):
        problems.append(f"only {len(found)} scenes: give --batchSize {len(found)} or less")
    geometry = Geometry(opt.resize_or_crop, opt.loadSize, opt.fineSize, min_side=min_side)
    work = partial(examine, opt=opt, kinds=kinds, geometry=geometry)
    scenes = list(parallel(work, found, opt.nThreads, "reading"))
    mismatches, notes = _compare_with_scheme(scenes)
    problems += [problem for scene in scenes for problem in scene.problems] + mismatches
    empty = [scene.files["inst"] for scene in scenes if scene.inst_is_empty]
    if len(empty) == sum("inst" in paths for paths in found):  # else some are without things
        problems += [f"{path}: every pixel is instance 0; create it again" for path in empty]
    sizes = {geometry.final(scene.size) for scene in scenes if scene.size}
    if len(sizes) > 1:
        several = f"images of {len(sizes)} sizes, which cannot share a batch"
        if opt.batchSize > max(1, len(opt.gpu_ids)):  # else each process has one at a time
            problems.append(f"{several}: give --batchSize 1, or crop them to one size")
        else:
            notes.append(several)
    notes += _no_class(scenes, opt)
    return Report(scenes, problems, notes)


def _no_class(scenes: list[SceneFindings], opt: argparse.Namespace) -> list[str]:
    """A note if 255 is counted as a class but probably is none, or classes are grey levels."""
    used = set().union(*(scene.classes for scene in scenes))
    counted = opt.ignore_label is None and (opt.label_nc == "auto" or opt.label_nc > 255)
    if not counted or 255 not in used or 254 in used or max(used) > 255:
        return []
    return [
        "label 255 occurs, but 254 does not: if it means no class, give --ignore_label 255; if "
        "classes are grey levels such as 0 and 255, number them with python -m "
        "data.convert_labels --palette auto"
    ]


def _scan(
    opt: argparse.Namespace, kinds: dict[str, Kind]
) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """The files by kind and scene, and what is wrong with folders, names and pairs."""
    files: dict[str, dict[str, Path]] = {}
    problems = []
    for name, kind in kinds.items():
        try:
            files[name], wrong = scan_folder(kind.folder(Path(opt.dataroot), opt.phase))
            problems += wrong
        except UserError as error:
            problems.append(str(error))
    if not files:
        raise UserError("; ".join(dict.fromkeys(problems)))  # each kind reports --dataroot
    return files, problems + pairing_problems(files, opt.label_nc)


def examine(
    files: dict[str, Path], opt: argparse.Namespace, kinds: dict[str, Kind], geometry: Geometry
) -> SceneFindings:
    """Read all files of one scene."""
    scene = SceneFindings(files)
    maps: dict[str, np.ndarray] = {}
    for kind, path in files.items():
        try:
            maps[kind] = np.asarray(kinds[kind].read(path))
            # Pillow does not open every TIFF that is read as an array
            if kinds[kind].size is file_size or path.suffix.lower() not in TIFF:
                scene.problems += _oddities(kind, path, opt)
        except UserError as error:
            scene.problems.append(str(error))
    if "label" not in maps:
        return scene
    sizes = {kind: array.shape[1::-1] for kind, array in maps.items()}
    scene.size = sizes["label"]
    scene.problems += size_problems(files, sizes, geometry)
    label = maps["label"] if opt.label_nc else None
    if label is not None:
        values, counts = np.unique(label, return_counts=True)
        scene.classes.update(dict(zip(values.tolist(), counts.tolist())))
        if problem := kinds["label"].problem(label, files["label"]):
            scene.problems.append(problem)
    if "inst" in maps and sizes["inst"] == scene.size:
        _count_instances(scene, maps["inst"], label, opt.ignore_label)
    for kind in set(maps) & set(ROLES.values()):
        if kinds[kind].values and not kinds[kind].values.is_rgb8:
            scene.values[kind] = _measure_values(maps[kind], kinds[kind].values)
    return scene


BINS = 8  # of a histogram, from the low to the high end of the range; one more on either side


def _measure_values(array: np.ndarray, values: Values) -> tuple[float, float, np.ndarray]:
    """An image's range, and the distribution of its numbers over the range that is mapped."""
    edges = np.linspace(values.low, values.high, BINS + 1)
    edges[-1] = np.nextafter(edges[-1], np.inf)  # the high end itself is inside
    counts = np.histogram(array, [-np.inf, *edges, np.inf])[0]
    return float(array.min()), float(array.max()), counts / array.size


def _oddities(kind: str, path: Path, opt: argparse.Namespace) -> list[str]:
    """What can be read, but is probably a mistake."""
    if path.suffix.lower() in NUMPY:
        return []
    with Image.open(path) as image:  # the header alone
        indexed, turn = image.mode == "P", None
        with suppress(Exception):  # damaged EXIF data, which training ignores
            turn = image.getexif().get(ORIENTATION)
    if indexed and kind == "label" and opt.label_nc:
        return [
            f"{path}: a label map with a palette; training takes the palette's indices as classes, "
            "which programs may reorder; convert it with python -m data.convert_labels, with "
            "--from_indexed if the indices are right, with --palette if the colours are"
        ]
    if is_turned(turn):
        return [f"{path}: EXIF asks for a rotation, which training ignores; save it upright"]
    return []


def _count_instances(
    scene: SceneFindings, inst: np.ndarray, label: np.ndarray | None, ignore_label: int | None
) -> None:
    """Compare instance ids with labels, both (H, W); label None: there are no classes."""
    path = scene.files["inst"]
    constant = inst.min() == inst.max() and (label is None or label.min() != label.max())
    scene.inst_is_empty = bool(constant and not inst.any())
    if constant and not scene.inst_is_empty:
        scene.problems.append(f"{path}: every pixel is instance {inst.flat[0]}; create it again")
    if label is None:
        return
    ids, labels, counts = label_counts(inst, label)
    scene.instances.update(dict(zip(ids.tolist(), labels.tolist())).values())
    ids %= 2**32  # those from 2**31 on are stored as negative numbers (data.files)
    # class 0 may be what has no class, and 0 * 1000 + n tells it from no other
    known = (labels != ignore_label) & ((ids >= 1000) | (labels != 0))
    expected = np.where(ids < 1000, ids, ids // 1000)
    scene.pixels = int(counts[known].sum())
    scene.things = int(counts[known & (expected == labels) & (ids >= 1000)].sum())
    scene.mismatches = int(counts[known & (expected != labels)].sum())


def _compare_with_scheme(scenes: list[SceneFindings]) -> tuple[list[str], list[str]]:
    """Problems and notes about ids that disagree with labels.

    Where most pixels follow Cityscapes' scheme (class, or class*1000 + n, which some must have), a
    pixel that does not is a problem: the maps are of different scenes, or one is damaged. Otherwise
    the data set numbers its instances in its own way, which is fine.
    """
    pixels = sum(scene.pixels for scene in scenes)
    mismatches = sum(scene.mismatches for scene in scenes)
    # ids that count from 1 may equal their class by chance, unlike class*1000 + n
    has_scheme = any(scene.things for scene in scenes)
    if mismatches and (2 * mismatches > pixels or not has_scheme):
        return [], [
            f"{mismatches / pixels:.1%} of the pixels have an instance id other than class or "
            "class*1000 + n: the ids follow a scheme of their own, and the class of an instance "
            "is read from the label map"
        ]
    return [
        f"{scene.files['inst']}: {scene.mismatches} pixels have an instance id of another class "
        f"than in {scene.files['label']}; are both of the same scene?"
        for scene in scenes
        if scene.mismatches
    ], []


def summary(report: Report, opt: argparse.Namespace) -> list[str]:
    """Lines about images, sizes, classes and instances."""
    scenes = report.scenes
    kinds = Counter(kind for scene in scenes for kind in scene.files)
    counts = ", ".join(f"{n} {shown_kind(kind, opt.label_nc)}" for kind, n in kinds.items())
    lines = [f"{opt.dataroot}, phase {opt.phase}: {len(scenes)} scenes; images: {counts}"]
    sizes = Counter(scene.size for scene in scenes if scene.size)
    listed = [f"{w}x{h} ({count})" for (w, h), count in sizes.most_common()]
    lines.append(f"sizes: {', '.join(listed) or 'none'}")
    for role in ROLES:
        lines += _value_lines(role, scenes, opt)
    classes = sum((scene.classes for scene in scenes), Counter())
    if not classes:
        return lines
    presence = Counter(label for scene in scenes for label in scene.classes)
    instances = sum((scene.instances for scene in scenes), Counter())
    total = sum(classes.values())
    names = CITYSCAPES_NAMES if opt.label_nc == len(CITYSCAPES_NAMES) else []
    lines.append("  class                     pixels   scenes  instances")
    for label in sorted(classes):
        name = names[label] if 0 <= label < len(names) else ""
        if label == opt.ignore_label:
            name = "(ignored)"
        elif opt.label_nc != "auto" and not 0 <= label < opt.label_nc:
            name = "(outside --label_nc)"
        share = f"{classes[label] / total:.3%}"
        lines.append(
            f"  {label:5} {name:20} {share:>8} {presence[label]:8} {instances[label]:10}".rstrip()
        )
    known = [label for label in classes if label != opt.ignore_label]
    lines.append(f"the largest label requires --label_nc {max(known, default=0) + 1} or more")
    return lines


def _value_lines(role: str, scenes: list[SceneFindings], opt: argparse.Namespace) -> list[str]:
    """The range and histogram of images other than 8-bit RGB."""
    kind = ROLES[role]
    measured = [scene.values[kind] for scene in scenes if kind in scene.values]
    if not measured:
        return []
    lows, highs, histograms = zip(*measured)
    values = image_values(opt, role)
    below, *inside, above = (f"{share:.1%}" for share in np.mean(histograms, 0))
    name = shown_kind(kind, opt.label_nc)
    return [
        f"{name}: {values.channels} x {values.dtype}, {min(lows):g} to {max(highs):g}; "
        f"{values.low:g} to {values.high:g} become -1 to 1",
        f"  below {below} | {' '.join(inside)} | above {above}",
    ]


if __name__ == "__main__":
    runpy.run_module("scripts.check_data", run_name="__main__")

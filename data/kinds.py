"""The kinds of maps that make up a scene: where their files are and how they are read."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data.arrays import NUMPY, array_size, file_size, read_array, read_integer_array, resize_array
from data.files import label_problem, list_files, read_features, read_integers, read_rgb
from data.values import RGB8, Values
from util.errors import UserError, brief

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class Kind:
    """One kind of map, in a folder of its own.

    folders: the names that the folder may have, {} for the phase. read: the exact numbers of a
    file, as an image or an array. dtype: of the scaled array. values: how images become tensors;
    None for maps of one number per pixel, which stay as they are. smooth: scaled by bicubic
    interpolation instead of nearest neighbour. size: of a file, by its header. problem: what is
    wrong with the numbers, or None. remedy: what to do if there is no folder, {} for the phase.
    """

    folders: tuple[str, ...]
    read: Callable[[Path], Image.Image | np.ndarray]
    dtype: str = "uint8"
    values: Values | None = None
    smooth: bool = False
    size: Callable[[Path], Size] = file_size
    problem: Callable[[np.ndarray, Path], str | None] | None = None
    remedy: str = ""

    def names(self, phase: str) -> list[str]:
        return [name.format(phase) for name in self.folders]

    def folder(self, root: Path, phase: str) -> Path:
        """The first folder of these names that exists under root; a UserError lists them all."""
        if not root.is_dir():
            raise UserError(f"--dataroot {root}: no such folder")
        names = self.names(phase)
        for name in names:
            if (root / name).is_dir():
                return root / name
        remedy = self.remedy.format(phase)
        if not remedy:
            maps = f"{phase}_label, {phase}_inst and {phase}_img"
            remedy = f"; a data set has {maps}, or with --label_nc 0 {phase}_A and {phase}_B"
        if found := {p.name for name in self.folders for p in root.glob(name.format("?*"))}:
            remedy += f"; it holds {brief(sorted(found))} (chosen by --phase)"
        raise UserError(f"{root}: holds no folder {' or '.join(names)}{remedy}")

    def shape(self, size: Size) -> tuple[int, ...]:
        """The shape of an array of this size: (H, W), or for images (H, W, C)."""
        return (size[1], size[0], self.values.channels) if self.values else (size[1], size[0])

    def load(self, path: Path, size: Size | None = None) -> np.ndarray:
        """A file's checked numbers, scaled to a size. Raises UserError."""
        image = self.read(path)
        if self.problem and (problem := self.problem(np.asarray(image), path)):
            raise UserError(problem)
        if isinstance(image, np.ndarray):
            image = resize_array(image, size or image.shape[1::-1], self.smooth)
        elif size not in (None, image.size):  # Pillow scales its own images faster
            how = Image.Resampling.BICUBIC if self.smooth else Image.Resampling.NEAREST
            image = image.resize(size, how)
        array = np.asarray(image)
        return array.astype(self.dtype, copy=False).reshape(self.shape(array.shape[1::-1]))


def scene_kinds(
    label_nc: int,
    use_instances: bool = True,
    load_photos: bool = True,
    load_features: bool = False,
    feat_num: int = 3,
    ignore_label: int | None = None,
    input_values: Values = RGB8,
    output_values: Values = RGB8,
    cond_values: Values | None = None,
    loss_weights: bool = False,
) -> dict[str, Kind]:
    """The kinds that these flags ask for, by the name that they have in an item."""
    kinds = {}
    if label_nc:
        small = label_nc <= 256 and 0 <= (ignore_label or 0) <= 255
        kinds["label"] = Kind(
            ("{}_label",),
            partial(_read_integers, what="label"),
            "uint8" if small else "int32",
            problem=partial(label_problem, label_nc=label_nc, ignore_label=ignore_label),
        )
    else:
        kinds["label"] = image_kind(input_values, "input", "{}_A", "{}A")
    if use_instances:
        remedy = "; without instance maps train with --no_instance"
        read = partial(_read_integers, what="instance")
        kinds["inst"] = Kind(("{}_inst",), read, "int32", remedy=remedy)
    if load_photos:
        folders = ("{}_img",) if label_nc else ("{}_B", "{}B")
        kinds["image"] = image_kind(output_values, "output", *folders)
    if load_features:
        read = partial(read_features, feat_num=feat_num)
        remedy = "; precompute_feature_maps.py --phase {} makes it"
        kinds["feat"] = Kind(("{}_feat",), read, values=Values(feat_num), remedy=remedy)
    if cond_values:
        cond = image_kind(cond_values, "cond", "{}_cond")
        kinds["cond"] = replace(cond, remedy="; --cond_nc reads its maps there")
    if loss_weights:
        remedy = "; --loss_weights reads its maps there"
        weights = Kind(("{}_weight",), read_weights, "float32", size=array_size, remedy=remedy)
        kinds["loss_weight"] = weights
    return kinds


def image_kind(values: Values, role: str, *folders: str) -> Kind:
    """Images of a role ("input", "output", "cond"): 8-bit RGB, or any channels and numbers."""
    rgb = values.channels == 3 and values.dtype == "uint8"
    read = partial(_read_rgb if rgb else _read_channels, values=values, role=role)
    size = file_size if rgb else array_size
    return Kind(folders, read, values.dtype, values, smooth=True, size=size)


def files_of(
    kinds: dict[str, Kind], dataroot: str | Path, phase: str
) -> dict[str, dict[str, Path]]:
    """The files of a phase: kind -> scene key -> path."""
    return {name: list_files(kind.folder(Path(dataroot), phase)) for name, kind in kinds.items()}


def _read_rgb(path: Path, values: Values, role: str) -> Image.Image | np.ndarray:
    """An 8-bit RGB image: what Pillow turns into one, or an array of that type."""
    is_array = path.suffix.lower() in NUMPY
    return _read_channels(path, values, role) if is_array else read_rgb(path)


def _read_channels(path: Path, values: Values, role: str) -> np.ndarray:
    """An image (H, W, C) of these channels and this type."""
    array = read_array(path)
    if array.shape[2] != values.channels:
        raise UserError(
            f"{path}: {array.shape[2]} channels, but --{role}_nc is {values.channels}; give "
            f"--{role}_nc {array.shape[2]}, or convert the files"
            + ("; arrays are (H, W, C)" if array.shape[0] == values.channels else "")
        )
    if array.dtype.name != values.dtype:
        raise UserError(
            f"{path}: numbers of type {array.dtype.name}, but --{role}_type is {values.dtype}; "
            "all files must have the same type"
        )
    return array


def read_weights(path: Path) -> np.ndarray:
    """One non-negative number per pixel, as in the file: (H, W) float32."""
    array = read_array(path)
    if array.shape[2] != 1 or array.min() < 0:
        raise UserError(f"{path}: expected one channel of non-negative loss weights")
    return array[..., 0].astype(np.float32)


def _read_integers(path: Path, what: str) -> Image.Image | np.ndarray:
    """read_integers, for npy and npz files too."""
    read = read_integer_array if path.suffix.lower() in NUMPY else read_integers
    return read(path, what)


def label_counts(inst: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many pixels have an id and a label, for each pair that occurs in maps (H, W) of integers:
    (ids, labels, counts), int64 each, the most frequent label of an id last."""
    # one number for each pair, as numbers are sorted faster; labels may be negative
    pairs = inst.astype(np.int64) * 2**32 + label.astype(np.int64) + 2**31
    pairs, counts = np.unique(pairs, return_counts=True)
    order = np.argsort(counts, kind="stable")
    ids, labels = np.divmod(pairs[order], 2**32)
    return ids, labels - 2**31, counts[order]

"""The scenes that the editor can open: those of a data set, and maps that a user uploads."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from data.aligned_dataset import AlignedDataset, Geometry
from data.create import create_dataset, photographs
from data.files import image_size, label_problem, read_integers, read_rgb
from util.errors import UserError

MOST_PIXELS = 4096 * 2048  # of an uploaded image
MOST_BYTES = 32 << 20  # of an uploaded file


class Scenes:
    """The data set of opt.dataroot and opt.phase, if there is one, and its photographs.

    names     the scenes; empty, with missing saying why, where there is no data set
    photos    the scenes that have a photograph
    """

    def __init__(self, opt: argparse.Namespace) -> None:
        """Raises UserError for a data set that is there but wrong."""
        self.opt = opt
        self.geometry = Geometry(opt.resize_or_crop, opt.loadSize, opt.fineSize)
        self.names: list[str] = []
        self.missing = ""
        self._photos: dict[str, Path] = {}
        if not Path(opt.dataroot).is_dir():
            self.missing = f"{opt.dataroot}: no such folder; give --dataroot, or upload maps"
            return
        self.dataset: AlignedDataset = create_dataset(opt, training=False, load_photos=False)
        self.names = list(self.dataset.scenes)
        self._photos = photographs(opt)

    @property
    def photos(self) -> list[str]:
        return [name for name in self.names if name in self._photos]

    def load(self, name: str) -> tuple[np.ndarray, np.ndarray | None, str]:
        """label (H, W), inst (H, W) or None, and the name by which test.py knows the scene."""
        if name not in self.names:
            raise UserError(f"scene {name!r}: not in {self.opt.dataroot}")
        item = self.dataset[self.names.index(name)]
        if isinstance(item, UserError):
            raise item
        inst = item["inst"][0].numpy() if "inst" in item else None
        return item["label"][0].numpy(), inst, Path(item["path"]).stem

    def photo(self, name: str) -> np.ndarray:
        """The photograph of a scene at the size of its maps, (H, W, 3) uint8."""
        if name not in self._photos:
            raise UserError(f"scene {name!r}: it has no photograph")
        photo = read_rgb(self._photos[name])
        size = self.geometry.scaled(self.dataset.sizes[name])
        return np.asarray(photo.resize(size, Image.Resampling.BICUBIC))

    def uploaded_photo(self, path: Path) -> np.ndarray:
        """A user's photograph, scaled like those of the data set, (H, W, 3) uint8."""
        check_upload(path)
        with told_by_name(path):
            return self._scaled_photo(path)

    def uploaded_maps(
        self, label_path: Path, inst_path: Path | None
    ) -> tuple[np.ndarray, np.ndarray | None, str]:
        """A user's label map and instance map, checked and scaled like those of the data set."""
        check_upload(label_path)
        with told_by_name(label_path):
            label = np.asarray(read_integers(label_path, "label"))
            problem = label_problem(label, label_path, self.opt.label_nc, self.opt.ignore_label)
            if problem:
                raise UserError(problem)
        inst = None
        if not self.opt.no_instance:
            if inst_path is None:
                raise UserError("no instance map: this model needs one beside the label map")
            check_upload(inst_path)
            with told_by_name(inst_path):
                inst = np.asarray(read_integers(inst_path, "instance"))
            if inst.shape != label.shape:
                raise UserError(
                    f"{inst_path.name} is {inst.shape[1]}x{inst.shape[0]}, but {label_path.name} "
                    f"is {label.shape[1]}x{label.shape[0]}: they must have one size"
                )
        size = self.geometry.scaled((label.shape[1], label.shape[0]))
        if size[0] * size[1] > MOST_PIXELS:
            raise UserError(f"{label_path.name}: would be scaled to {size[0]}x{size[1]}, too large")
        label = nearest_resized(label, size)
        return label, None if inst is None else nearest_resized(inst, size), label_path.stem

    def _scaled_photo(self, path: Path) -> np.ndarray:
        picture = read_rgb(path)
        size = self.geometry.scaled(picture.size)
        if size[0] * size[1] > MOST_PIXELS:
            raise UserError(f"{path}: would be scaled to {size[0]}x{size[1]}, too large")
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def nearest_resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) integers at another (width, height)."""
    picture = Image.fromarray(array.astype(np.int32))
    return np.asarray(picture.resize(size, Image.Resampling.NEAREST))


def check_upload(path: Path) -> None:
    """Refuse a file that is too large, before it is decoded."""
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path.name}: {path.stat().st_size >> 20} MB; at most {MOST_BYTES >> 20}")
    with told_by_name(path):
        width, height = image_size(path)
    if width * height > MOST_PIXELS:
        raise UserError(f"{path.name}: {width}x{height} pixels; at most 4096x2048")


@contextmanager
def told_by_name(path: Path) -> Iterator[None]:
    """Let messages name an uploaded file as its owner does, not by the folder it was put into."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from error

"""The scenes that the editor can open: those of a data set, and maps that a user uploads."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.aligned_dataset import AlignedDataset, Geometry
from data.create import create_dataset, photographs
from data.files import image_size
from data.kinds import scene_kinds
from util.errors import UserError

MAX_PIXELS = 4096 * 2048  # of an uploaded image
MAX_BYTES = 32 << 20  # of an uploaded file


class Scenes:
    """The data set of opt.dataroot and opt.phase, if there is one, and its photographs.

    names     the scenes; empty without a data set, and missing says why
    photos    the scenes that have a photograph
    """

    def __init__(self, opt: argparse.Namespace) -> None:
        """Raises UserError for a data set that exists but is wrong."""
        self.opt = opt
        self.geometry = Geometry(opt.resize_or_crop, opt.loadSize, opt.fineSize)
        self.names: list[str] = []
        self.missing = ""
        self._photos: dict[str, Path] = {}
        self._kinds = scene_kinds(opt.label_nc, ignore_label=opt.ignore_label)
        if not Path(opt.dataroot).is_dir():
            self.missing = f"{opt.dataroot}: no such folder; give --dataroot, or upload maps"
            return
        self.dataset: AlignedDataset = create_dataset(opt, training=False, load_photos=False)
        self.names = list(self.dataset.scenes)
        for name in self.names:
            if any("\ud800" <= char <= "\udfff" for char in name):  # how Python reads other bytes
                raise UserError(
                    f"{opt.dataroot}: the name of scene {name!r} is not UTF-8 text, which the page "
                    "needs; rename its files"
                )
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
            raise UserError(f"scene {name!r} has no photograph")
        size = self.geometry.scaled(self.dataset.sizes[name])
        return self._kinds["image"].load(self._photos[name], size)

    def uploaded_photo(self, path: Path) -> np.ndarray:
        """A user's photograph, scaled like those of the data set, (H, W, 3) uint8."""
        with upload(path):
            return self._load("image", path)

    def uploaded_maps(
        self, label_path: Path, inst_path: Path | None
    ) -> tuple[np.ndarray, np.ndarray | None, str]:
        """A user's label map and instance map, checked and scaled like those of the data set."""
        with upload(label_path):
            label = self._load("label", label_path)
        if self.opt.no_instance:
            return label, None, label_path.stem
        if inst_path is None:
            raise UserError("no instance map: this model needs one as well as the label map")
        with upload(inst_path):
            (width, height), (width0, height0) = image_size(inst_path), image_size(label_path)
            if (width, height) != (width0, height0):
                raise UserError(
                    f"{inst_path.name} is {width}x{height}, but {label_path.name} is "
                    f"{width0}x{height0}: they must have the same size"
                )
            return label, self._load("inst", inst_path), label_path.stem

    def _load(self, kind: str, path: Path) -> np.ndarray:
        """A user's file, read and scaled like those of the data set."""
        width, height = self.geometry.scaled(image_size(path))
        if width * height > MAX_PIXELS:
            raise UserError(f"{path}: would be scaled to {width}x{height}, which is too large")
        return self._kinds[kind].load(path, (width, height))


@contextmanager
def upload(path: Path) -> Iterator[None]:
    """Refuse an uploaded file that is too large, before it is decoded; and let messages give its
    name without the folder that it was put into."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size >> 20} MB; at most {MAX_BYTES >> 20}")
        width, height = image_size(path)
        if width * height > MAX_PIXELS:
            raise UserError(f"{path}: {width}x{height} pixels; at most 4096x2048")
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from error

"""Label maps, instance maps, photographs and features of one scene, read and transformed alike."""

import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from data.augment import Augmentation
from data.files import pairing_problems
from data.kinds import Kind, Size, files_of, scene_kinds
from data.values import RGB8
from util.errors import UserError, brief

MAX_PIXELS = 2**28  # of a scaled image; a narrow strip scaled in width can need far more


@dataclass(frozen=True)
class Geometry:
    """How images are resized, cropped and flipped: --resize_or_crop and its sizes.

    min_side: the minimum height and width of a scaled and cropped image.
    """

    mode: str = "scale_width"
    load_size: int = 1024
    fine_size: int = 512
    flip: bool = False
    min_side: int = 1

    def scaled(self, size: Size) -> Size:
        """The size after scaling an image of this size, before the crop."""
        width, height = size
        if self.mode == "resize_and_crop":
            return self.load_size, self.load_size
        if self.mode.startswith("scale_width"):
            return self.load_size, max(1, self.load_size * height // width)
        return size

    def final(self, size: Size) -> Size:
        """The size after scaling and cropping an image of this size."""
        scaled = self.scaled(size)
        if self.crops and max(scaled) > self.fine_size:  # smaller ones stay whole
            return self.fine_size, self.fine_size
        return scaled

    @property
    def crops(self) -> bool:
        return "crop" in self.mode

    def sample(self, size: Size, rng: random.Random) -> tuple[tuple[int, int], bool]:
        """Choose the crop's upper left corner (x, y) in a scaled image, and whether to flip."""
        width, height = size
        x = rng.randint(0, max(0, width - self.fine_size)) if self.crops else 0
        y = rng.randint(0, max(0, height - self.fine_size)) if self.crops else 0
        return (x, y), self.flip and rng.random() > 0.5

    def crop(self, array: np.ndarray, corner: tuple[int, int], flip: bool) -> np.ndarray:
        """Crop and flip an array (H, W) or (H, W, C)."""
        if self.crops:
            x, y = corner
            array = array[y : y + self.fine_size, x : x + self.fine_size]
        return array[:, ::-1] if flip else array


@dataclass(eq=False, repr=False)
class SceneDataset(Dataset):
    """Scenes from any files. An item is a dict of
      label  (1, H, W) uint8 (int32 if a class or ignore_label needs it);
             with label_nc 0 (input_nc, H, W) float in [-1, 1]
      inst   (1, H, W) int32, the ids of the file              if there are instance maps
      image  (output_nc, H, W) float in [-1, 1], the photograph; see image_bytes
      feat   (feat_num, H, W) float in [-1, 1]
      cond   (cond_nc, H, W) float in [-1, 1]
      loss_weight  (1, H, W) float, from 0 on
      path   the label map's file
    and has those that are among the data set's kinds.
    An item that cannot be read is the UserError that says why (raised by the loader: an exception
    in a worker process would arrive wrapped in a traceback).

    Use dataset[index], or dataset[epoch, index] for another random crop and flip: an item's
    randomness depends only on (seed, epoch, index), never on workers or order.
    """

    kinds: dict[str, Kind]
    files: dict[str, dict[str, Path]]  # by kind, then by scene
    scenes: list[str]
    geometry: Geometry
    seed: int
    augment: Augmentation | None = None
    image_bytes: bool = False  # leave 8-bit photographs uint8, for data.values.bytes_to_float
    sizes: dict[str, Size] = field(default_factory=dict, init=False)  # by scene, as in the files

    def __post_init__(self) -> None:
        self.read_maps = self.scaled_maps  # or a cache of it, see data.cache

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def names_crc(self) -> int:
        """A checksum of the scenes' names in their order, wherever the folder is."""
        return zlib.crc32(repr(self.scenes).encode(errors="surrogateescape"))

    def __getitem__(self, key: int | tuple[int, int]) -> dict | UserError:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        try:
            maps = self.read_maps(index)
        except UserError as error:
            return error
        height, width = maps["label"].shape[:2]
        rng = random.Random(f"{self.seed} {epoch} {index}")
        corner, flip = self.geometry.sample((width, height), rng)
        item = {
            kind: self._to_tensor(kind, self.geometry.crop(array, corner, flip))
            for kind, array in maps.items()
        }
        if self.augment:
            item = self.augment(item, rng)
        item["path"] = str(self.files["label"][self.scenes[index]])
        return item

    def _to_tensor(self, kind: str, array: np.ndarray) -> torch.Tensor:
        values = self.kinds[kind].values
        if kind == "image" and self.image_bytes and values.is_bytes:
            return torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))
        return to_tensor(array) if values is None or values.is_bytes else values.to_tensor(array)

    @property
    def has_one_size(self) -> bool:
        """Whether all items have the same height and width."""
        return len({self.geometry.final(size) for size in self.sizes.values()}) == 1

    def scaled_size(self, index: int) -> Size:
        """The size of a scene's maps after scaling, before the crop."""
        return self.geometry.scaled(self.sizes[self.scenes[index]])

    def scaled_maps(self, index: int) -> dict[str, np.ndarray]:
        """Read and scale the maps of a scene: what does not change from epoch to epoch.

        (H, W), or for images (H, W, C), each of its Kind's dtype.
        """
        size = self.scaled_size(index)
        return {
            kind: self.kinds[kind].load(path, size) for kind, path in self.sources(index).items()
        }

    def layout(self, index: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """The dtype and shape of each of scaled_maps(index)'s arrays, without reading them."""
        size = self.scaled_size(index)
        return {name: (np.dtype(kind.dtype), kind.shape(size)) for name, kind in self.kinds.items()}

    def sources(self, index: int) -> dict[str, Path]:
        """The files of a scene by kind."""
        return {kind: paths[self.scenes[index]] for kind, paths in self.files.items()}

    def check_size(self, index: int) -> None:
        """Record the size of a scene from its files' headers. Raises UserError if they differ, or
        for a size that cannot be trained on."""
        files = self.sources(index)
        sizes = {kind: self.kinds[kind].size(path) for kind, path in files.items()}
        if problems := size_problems(files, sizes, self.geometry):
            raise UserError(problems[0])
        self.sizes[self.scenes[index]] = sizes["label"]


class AlignedDataset(SceneDataset):
    """The scenes of one phase ("train", "test", ...) of a data set folder, sorted by name."""

    def __init__(
        self,
        dataroot: str | Path,
        phase: str,
        label_nc: int,
        geometry: Geometry,
        *,
        max_size: int | None = None,
        seed: int = 0,
        augment: Augmentation | None = None,
        image_bytes: bool = False,
        **kinds: object,
    ) -> None:
        """image_bytes: as in SceneDataset. kinds: what scene_kinds takes."""
        self._cache_key = {"label_nc": label_nc, **{name: repr(v) for name, v in kinds.items()}}
        kinds = scene_kinds(label_nc, **kinds)
        files = files_of(kinds, dataroot, phase)
        if problems := pairing_problems(files, label_nc):
            raise UserError(
                f"{dataroot}: {len(problems)} missing: {brief(problems)}; "
                "python -m data.check lists every problem"
            )
        scenes = sorted(files["label"], key=files["label"].get)[:max_size]
        super().__init__(kinds, files, scenes, geometry, seed, augment, image_bytes and not augment)
        for index in range(len(scenes)):
            self.check_size(index)

    def settings(self, index: int) -> dict:
        """All that scaled_maps(index) depends on besides its files; values for JSON."""
        return {"size": self.scaled_size(index), **self._cache_key}


def size_problems(files: dict[str, Path], sizes: dict[str, Size], geometry: Geometry) -> list[str]:
    """What is wrong with the sizes (by kind, as in the files) of one scene's files."""
    problems = []
    width, height = scaled = geometry.scaled(sizes["label"])
    # precomputed features have about the size that other maps are scaled to: twice a rounded half
    compared = {
        kind: size
        for kind, size in sizes.items()
        if kind != "feat" or max(abs(a - b) for a, b in zip(size, scaled)) > 1
    }
    if len(set(compared.values())) > 1:
        listed = ", ".join(f"{files[kind]} is {w}x{h}" for kind, (w, h) in compared.items())
        problems.append(f"the files of a scene must have the same size, but {listed}")
    if width * height > MAX_PIXELS:
        problems.append(
            f"{files['label']}: would be {width}x{height} when scaled, too large for memory; "
            "leave it out, or give another --resize_or_crop or --loadSize"
        )
    if geometry.crops and min(width, height) < geometry.fine_size < max(width, height):
        problems.append(
            f"{files['label']}: {width}x{height} when scaled, smaller than "
            f"--fineSize {geometry.fine_size}; give a smaller --fineSize"
        )
    elif min(final := geometry.final(sizes["label"])) < geometry.min_side:
        problems.append(
            f"{files['label']}: {final[0]}x{final[1]} when scaled and cropped, but these networks "
            f"and losses need at least {geometry.min_side}x{geometry.min_side} pixels; leave it "
            "out, or change --loadSize, --fineSize or --resize_or_crop"
        )
    return problems


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Integers (H, W) -> (1, H, W) of the same type; uint8 (H, W, C) -> (C, H, W) in [-1, 1].

    A separate function, so that the golden tests can replace it by one in float64.
    """
    if array.ndim == 2:
        return torch.from_numpy(np.array(array, order="C"))[None]  # a copy
    return RGB8.to_tensor(array)

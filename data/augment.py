"""--augment: random changes of a scene, the same for all of its maps."""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import affine_transform, gaussian_filter
from torch import Tensor

AUGMENTATIONS = ("flip_v", "rotate", "scale", "shift", "color", "blur")
GEOMETRIC = ("rotate", "scale", "shift")  # these bring in borders from outside the image

ROTATION = 10.0  # degrees, either way
SCALE = 1.25  # at most this factor, larger or smaller
SHIFT = 0.1  # of the width and height, either way
COLOR = 0.2  # of the gain of each channel and of the offset, in units of [-1, 1]
BLUR = 1.5  # largest standard deviation in pixels; applied to half of the scenes

NEAREST = ("inst", "feat", "loss_weight")  # never interpolated, as label maps are not


@dataclass(frozen=True)
class Augmentation:
    """names: the changes that are made. Ids are never interpolated. Areas from outside the image
    get ignore_label, instance 0 and loss weight 0; images are mirrored there."""

    names: tuple[str, ...]
    ignore_label: int | None = None
    label_nc: int = 0

    def __call__(self, item: dict[str, Tensor], rng: random.Random) -> dict[str, Tensor]:
        """item: as in SceneDataset. All randomness comes from rng, in a fixed order."""
        item = dict(item)
        if "flip_v" in self.names and rng.random() > 0.5:
            item = {kind: value.flip(-2).contiguous() for kind, value in item.items()}
        if any(name in self.names for name in GEOMETRIC):
            matrix, shift = self._sample_affine(rng)
            for kind, value in item.items():
                item[kind] = self._transform(kind, value, matrix, shift)
        seen = "image" if self.label_nc else "label"
        if seen in item and "color" in self.names:
            item[seen] = _color(item[seen], rng)
        if seen in item and "blur" in self.names:
            item[seen] = _blur(item[seen], rng)
        return item

    def _sample_affine(self, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """From positions in the result to positions in the source, both (row, column) relative to
        the centre: a matrix (2, 2), and a shift (2,) as a share of the size."""
        names = self.names
        angle = math.radians(rng.uniform(-ROTATION, ROTATION)) if "rotate" in names else 0.0
        factor = SCALE ** rng.uniform(-1, 1) if "scale" in names else 1.0
        shift = [rng.uniform(-SHIFT, SHIFT) if "shift" in names else 0.0 for _ in range(2)]
        cosine, sine = math.cos(angle) / factor, math.sin(angle) / factor
        return np.array([[cosine, -sine], [sine, cosine]]), np.array(shift)

    def _transform(self, kind: str, value: Tensor, matrix: np.ndarray, shift: np.ndarray) -> Tensor:
        maps = value.numpy()
        middle = (np.array(maps.shape[1:]) - 1) / 2
        offset = middle - matrix @ middle + shift * maps.shape[1:]
        ids = kind in NEAREST or (kind == "label" and self.label_nc)
        outside = self.ignore_label if kind == "label" and ids else 0
        settings = {"order": 0, "cval": outside} if ids else {"order": 1, "mode": "mirror"}
        planes = [affine_transform(plane, matrix, offset, **settings) for plane in maps]
        return torch.from_numpy(np.stack(planes))


def _color(image: Tensor, rng: random.Random) -> Tensor:
    """A random gain for each channel and one offset for all, clipped to [-1, 1] or, where the image
    exceeds that, to its own range."""
    gains = [1 + rng.uniform(-COLOR, COLOR) for _ in range(len(image))]
    offset = rng.uniform(-COLOR, COLOR)
    low, high = min(-1.0, image.min().item()), max(1.0, image.max().item())
    return (image * torch.tensor(gains)[:, None, None] + offset).clamp(low, high)


def _blur(image: Tensor, rng: random.Random) -> Tensor:
    deviation = rng.uniform(0, BLUR)
    if rng.random() > 0.5:
        return image
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, deviation, deviation)))

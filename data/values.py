"""Numbers in image files and in tensors: what type they have, and which range becomes [-1, 1]."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError

TYPES: dict[str, tuple[float, float] | None] = {  # type of a file's numbers -> its whole range
    "uint8": (0.0, 255.0),
    "uint16": (0.0, 65535.0),
    "int16": (-32768.0, 32767.0),
    "float32": None,
}
# role, as in --input_nc, --input_range, --input_type -> the kind of its images (data.kinds)
ROLES = {"input": "label", "output": "image", "cond": "cond"}


@dataclass(frozen=True)
class Values:
    """The images of one kind: how many channels, numbers of which type, and the range whose ends
    become -1 and 1. Numbers outside it go beyond -1 and 1; none are clipped."""

    channels: int = 3
    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0

    @property
    def is_rgb8(self) -> bool:
        """Whether these are ordinary 8-bit RGB images."""
        return self == RGB8

    @property
    def is_bytes(self) -> bool:
        """Whether 0 .. 255 become [-1, 1], of however many channels."""
        return (self.dtype, self.low, self.high) == ("uint8", 0.0, 255.0)

    def to_tensor(self, array: np.ndarray) -> Tensor:
        """(H, W, C) of the file's type -> (C, H, W) float32, the range as [-1, 1]."""
        floats = np.empty((array.shape[2], *array.shape[:2]), np.float32)
        # in numpy, as torch's threads would mostly wait for each other in so small a task
        rows = array.transpose(2, 0, 1)
        if self.low:
            rows = rows - np.float32(self.low)
        np.divide(rows, np.float32((self.high - self.low) / 2), out=floats)
        floats -= 1
        return torch.from_numpy(floats)

    def to_array(self, images: Tensor) -> np.ndarray:
        """(..., C, H, W) in [-1, 1] -> (..., H, W, C) of the file's type, rounded to nearest."""
        numbers = (images.movedim(-3, -1).cpu().double() + 1) * ((self.high - self.low) / 2)
        numbers += self.low
        whole = TYPES[self.dtype]
        if whole is not None:  # a number outside the type would wrap around
            numbers = numbers.clamp(*whole).round()
        return numbers.numpy().astype(self.dtype)

    def scaled(self, array: np.ndarray) -> np.ndarray:
        """Numbers of a file with the range as 0 .. 255, float64; 8-bit ones as they are."""
        if self.is_bytes:
            return array
        return (array.astype(np.float64) - self.low) * (255 / (self.high - self.low))

    def describe_view(self) -> str:
        """What util.pages.colours.to_image shows, for a caption; empty for 8-bit RGB."""
        if self.is_rgb8:
            return ""
        which = "channels 1, 2, 3" if self.channels >= 3 else "channel 1"
        return f"{which} of {self.channels}, {self.low:g} to {self.high:g} as black to white"


RGB8 = Values()


def refuse_beyond_type(role: str, dtype: str, ends: Sequence[float]) -> None:
    """Raises UserError for a range (low, high) beyond the numbers of this type."""
    whole, (low, high) = TYPES[dtype], ends
    if whole and not whole[0] <= low < high <= whole[1]:
        raise UserError(f"--{role}_range {low:g},{high:g}: {dtype} cannot hold it")


def bytes_to_float(images: Tensor) -> Tensor:
    """uint8 -> float in [-1, 1]: the numbers that Values.to_tensor makes of them, on any device."""
    floats = images.float()
    # a tensor, as GPUs replace division by a number with multiplication by its reciprocal, which
    # rounds differently; filled on the device, as a copy would wait for it
    half = torch.full((), 127.5, dtype=floats.dtype, device=floats.device)
    return floats.div_(half).sub_(1)


def image_values(opt: argparse.Namespace, role: str) -> Values:
    """The values of a role's images ("input", "output", "cond"), set by flags and by training."""
    dtype = getattr(opt, f"{role}_type") or "uint8"
    low_high = getattr(opt, f"{role}_range")
    low, high = (TYPES[dtype] or (-1.0, 1.0)) if isinstance(low_high, str) else low_high
    return Values(getattr(opt, f"{role}_nc"), dtype, float(low), float(high))

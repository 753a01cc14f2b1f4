"""Shapes in integer maps: boxes, brush strokes, pasted masks, outlines, nearest pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

Point = tuple[float, float]  # (y, x) in pixels; the first pixel's centre is (0, 0)


class Box(NamedTuple):
    """Rows top .. bottom-1 and columns left .. right-1."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def empty(self) -> bool:
        return min(self.shape) <= 0

    def shifted(self, dy: int, dx: int) -> "Box":
        return Box(self.top + dy, self.bottom + dy, self.left + dx, self.right + dx)

    def grown(self, margin: int) -> "Box":
        return Box(self.top - margin, self.bottom + margin, self.left - margin, self.right + margin)

    def clipped(self, shape: tuple[int, int]) -> "Box":
        """The part inside an image of (height, width)."""
        height, width = shape
        return Box(
            max(0, self.top), min(height, self.bottom), max(0, self.left), min(width, self.right)
        )

    def inside(self, other: "Box") -> tuple[slice, slice]:
        """The slices of this box in an array that holds what other covers."""
        return self.shifted(-other.top, -other.left).slices

    def union(self, other: "Box") -> "Box":
        return Box(
            min(self.top, other.top),
            max(self.bottom, other.bottom),
            min(self.left, other.left),
            max(self.right, other.right),
        )


def box_of(mask: np.ndarray) -> Box | None:
    """The smallest box around what is true in (H, W) bool; None if nothing is."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return Box(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)


def stroke(
    points: Sequence[Point], radius: float, shape: tuple[int, int]
) -> tuple[Box, np.ndarray]:
    """What a round brush touches that is drawn along points, in an image of (height, width).

    Returns the box of the stroke and, inside it, (h, w) bool: the pixels whose centre is at most
    radius away from the line. The pixel under a point is always touched. The box is empty if the
    stroke lies outside.
    """
    path = np.array(points, float).reshape(-1, 2)
    reach = int(np.ceil(radius))
    low, high = np.floor(path.min(0)).astype(int), np.ceil(path.max(0)).astype(int)
    box = Box(low[0] - reach, high[0] + reach + 1, low[1] - reach, high[1] + reach + 1)
    box = Box(*map(int, box)).clipped(shape)
    mask = np.zeros(np.maximum(box.shape, 0), bool)
    if box.empty:
        return box, mask
    for start, end in zip(path, path[1:] if len(path) > 1 else path):
        piece = _capsule_box(start, end, reach).clipped(shape)
        if not piece.empty:
            mask[piece.inside(box)] |= _capsule(start, end, radius, piece)
    for y, x in np.rint(path).astype(int):
        if box.top <= y < box.bottom and box.left <= x < box.right:
            mask[y - box.top, x - box.left] = True
    return box, mask


def _capsule_box(start: np.ndarray, end: np.ndarray, reach: int) -> Box:
    low = np.floor(np.minimum(start, end)).astype(int) - reach
    high = np.ceil(np.maximum(start, end)).astype(int) + reach + 1
    return Box(int(low[0]), int(high[0]), int(low[1]), int(high[1]))


def _capsule(start: np.ndarray, end: np.ndarray, radius: float, box: Box) -> np.ndarray:
    """The pixels of a box at most radius away from a line segment."""
    ys, xs = np.mgrid[box.slices]
    dy, dx = end - start
    length = dy * dy + dx * dx
    along = ((ys - start[0]) * dy + (xs - start[1]) * dx) / length if length else 0.0
    along = np.clip(along, 0.0, 1.0)
    away = (ys - start[0] - along * dy) ** 2 + (xs - start[1] - along * dx) ** 2
    return away <= radius * radius


def scaled(mask: np.ndarray, scale: float) -> np.ndarray:
    """A bool mask at scale times its size, at least one pixel each way, nearest neighbour."""
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    picture = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(picture.resize((width, height), Image.Resampling.NEAREST)) > 0


def centred(shape: tuple[int, int], y: float, x: float) -> Box:
    """The box of (height, width) whose centre is the pixel (y, x)."""
    top, left = round(y - (shape[0] - 1) / 2), round(x - (shape[1] - 1) / 2)
    return Box(top, top + shape[0], left, left + shape[1])


def pasted(mask: np.ndarray, place: Box, picture: tuple[int, int]) -> tuple[Box, np.ndarray]:
    """The part of a mask put at place that lies inside an image: its box and its pixels there."""
    box = place.clipped(picture)
    return box, mask[box.inside(place)] if not box.empty else mask[:0, :0]


def nearest(source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every pixel the row and column of the nearest one that is true in source (H, W) bool."""
    rows, columns = ndimage.distance_transform_edt(
        ~source, return_distances=False, return_indices=True
    )
    return rows, columns


def components(label: np.ndarray) -> np.ndarray:
    """Number the connected pieces of one class each: (H, W) integers -> (H, W) int32 from 1 on."""
    numbered = np.zeros(label.shape, np.int32)
    count = 0
    for value in np.unique(label).tolist():
        pieces, found = ndimage.label(label == value)
        numbered += np.where(pieces > 0, pieces + count, 0).astype(np.int32)
        count += found
    return numbered


def outline(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The border of a mask (H, W) bool as straight lines (x0, y0, x1, y1) on the pixel grid.

    A line runs along pixel sides, so a single pixel at (y, x) has four: from (x, y) to
    (x + 1, y) and so on.
    """
    padded = np.pad(mask, 1)
    lines = []
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (H + 1, W): a border above row y
    for y, x0, x1 in _runs(across):
        lines.append((x0, y, x1, y))
    down = padded[1:-1, 1:] != padded[1:-1, :-1]  # (H, W + 1): a border left of column x
    for x, y0, y1 in _runs(down.T):
        lines.append((x, y0, x, y1))
    return lines


def _runs(rows: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, start, end) of each run of true in each row."""
    steps = np.diff(np.pad(rows, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(r), int(a), int(b)) for (r, a), (_, b) in zip(starts, ends)]

"""Shapes in integer maps: brush strokes, scaled masks, connected components, outlines."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

Point = tuple[float, float]  # (y, x) in pixels; the first pixel's centre is (0, 0)


def box_of(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """The bounding box (rows, columns) of a mask (H, W) bool, with a margin on each side."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, span.start - margin), span.stop + margin) for span in box)


def is_inside(
    y: np.ndarray | int, x: np.ndarray | int, shape: tuple[int, int]
) -> np.ndarray | bool:
    """Which pixels (y, x) lie inside an image of this (height, width)."""
    return (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])


def stroke(points: Sequence[Point], radius: float, shape: tuple[int, int]) -> np.ndarray:
    """The pixels that a round brush covers along points: (height, width) bool.

    These are the pixels whose centre is at most radius away from the line, and those under a point.
    """
    mask = np.zeros(shape, bool)
    path = np.array(points, float)
    for start, end in zip(path, path[1:] if len(path) > 1 else path):
        low, high = np.minimum(start, end) - radius, np.maximum(start, end) + radius
        box = tuple(
            slice(max(0, math.floor(a)), min(side, max(0, math.ceil(b) + 1)))
            for a, b, side in zip(low, high, shape)
        )
        ys, xs = np.ogrid[box]
        dy, dx = end - start
        along = ((ys - start[0]) * dy + (xs - start[1]) * dx) / ((dy * dy + dx * dx) or 1)
        along = np.clip(along, 0, 1)  # the nearest place of the segment
        away = (ys - start[0] - along * dy) ** 2 + (xs - start[1] - along * dx) ** 2
        mask[box] |= away <= radius * radius
    ys, xs = np.rint(path).astype(int).T
    inside = is_inside(ys, xs, shape)
    mask[ys[inside], xs[inside]] = True
    return mask


def scaled(mask: np.ndarray, scale: float) -> np.ndarray:
    """A bool mask at scale times its size, at least 1x1, by nearest neighbour."""
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def components(label: np.ndarray) -> np.ndarray:
    """Number each class's connected components: (H, W) integers -> (H, W) int32 from 1 on."""
    numbered = np.zeros(label.shape, np.int32)
    count = 0
    for value in np.unique(label):
        pieces, found = ndimage.label(label == value)
        numbered[pieces > 0] = pieces[pieces > 0] + count
        count += found
    return numbered


def outline(mask: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The border of a mask (H, W) bool as straight lines (x0, y0, x1, y1) on the pixel grid.

    A line runs along pixel sides, so a single pixel at (y, x) has four: from (x, y) to
    (x + 1, y) and so on.
    """
    padded = np.pad(mask, 1)
    across = np.diff(padded[:, 1:-1], axis=0)  # (H + 1, W): a border above row y
    down = np.diff(padded[1:-1], axis=1)  # (H, W + 1): a border left of column x
    lines = [(x0, y, x1, y) for y, x0, x1 in _runs(across)]
    return lines + [(x, y0, x, y1) for x, y0, y1 in _runs(down.T)]


def _runs(rows: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, start, end) of each run of True in each row."""
    row, places = np.nonzero(np.diff(np.pad(rows, ((0, 0), (1, 1))), axis=1))
    return list(zip(row[::2].tolist(), places[::2].tolist(), places[1::2].tolist()))

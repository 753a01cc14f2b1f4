"""Checks of what edits are given: by users, edit lists and browsers. All raise UserError."""

import argparse
import math
from collections.abc import Sequence

import numpy as np

from models.masks import Point
from util.errors import UserError

LARGEST_ID = 65535  # instance ids are stored in 16-bit PNG files
MOST_POINTS = 10_000  # of one brush stroke


def check_maps(label: np.ndarray, inst: np.ndarray | None, opt: argparse.Namespace) -> None:
    """Whether a model of these options takes the maps, (H, W) integers each."""
    if label.ndim != 2 or label.dtype.kind not in "iu" or not label.size:
        raise UserError(f"a label map of {label.dtype} {label.shape}: expected integers (H, W)")
    known = label[label != opt.ignore_label]
    if known.size and not 0 <= known.min() <= known.max() < opt.label_nc:
        raise UserError(
            f"labels {known.min()} to {known.max()}, but the model knows 0 to {opt.label_nc - 1}"
        )
    if opt.no_instance:
        return
    if inst is None:
        raise UserError("no instance map: this model was trained with one for every label map")
    if inst.shape != label.shape or inst.dtype.kind not in "iu":
        raise UserError(
            f"an instance map of {inst.dtype} {inst.shape} beside a label map of {label.shape}"
        )
    if inst.min() < 0 or inst.max() > LARGEST_ID:
        raise UserError(f"instance ids {inst.min()} to {inst.max()}: expected 0 to {LARGEST_ID}")


def feature_vector(feature: object, feat_num: int) -> np.ndarray:
    """A feature as (feat_num,) float32."""
    try:
        vector = np.array(feature, np.float32)
    except (TypeError, ValueError):
        vector = np.zeros(0)
    if vector.shape != (feat_num,) or not np.isfinite(vector).all():
        raise UserError(f"feature: expected {feat_num} numbers, found {feature!r:.60}")
    return vector


def stroke_points(points: object, shape: tuple[int, int]) -> list[Point]:
    """The points of a brush stroke in an image of (height, width), or not far from it."""
    if not isinstance(points, Sequence) or not 1 <= len(points) <= MOST_POINTS:
        raise UserError(f"points: expected 1 to {MOST_POINTS} of (y, x), found {points!r:.40}")
    far = 2 * max(shape)
    path = []
    for point in points:
        if not isinstance(point, Sequence) or len(point) != 2:
            raise UserError(f"points: expected (y, x), found {point!r:.40}")
        path.append(tuple(number(v, "a point of the stroke", -far, far) for v in point))
    return path


def shape_mask(shape: object) -> np.ndarray:
    """Rows of "#" and "." as (h, w) bool."""
    rows = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else []
    text = [row for row in rows if isinstance(row, str) and row and set(row) <= {"#", "."}]
    even = len({len(row) for row in text}) == 1 and len(text) == len(rows)
    if not even or not any("#" in row for row in text) or max(len(rows), len(rows[0])) > 8192:
        raise UserError("shape: expected rows of one length, '#' where the object is, else '.'")
    return np.array([[sign == "#" for sign in row] for row in rows])


def integer(value: object, what: str, low: int, high: int) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise UserError(f"{what}: expected an integer from {low} to {high}, found {value!r:.40}")
    return int(value)


def number(value: object, what: str, low: float, high: float) -> float:
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high:
        raise UserError(f"{what}: expected a number from {low} to {high:g}, found {value!r:.40}")
    return float(value)


def region_id(key: object) -> int:
    try:
        return int(key)
    except (TypeError, ValueError) as error:
        raise UserError(f"features: expected region ids, found {key!r:.40}") from error

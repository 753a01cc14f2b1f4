"""Checks of edits' arguments, from users, edit lists and browsers. All raise UserError."""

import argparse
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from models.build import uses_features
from util.errors import UserError

LARGEST_ID = 65535  # instance ids are stored in 16-bit PNG files
MAX_POINTS = 10_000  # of one brush stroke


def argument_checks(
    opt: argparse.Namespace, size: tuple[int, int]
) -> dict[str, Callable[[object], object]]:
    """For each argument of an edit, by name: a function from any value to the checked value.

    opt: the model's; size: (height, width) of the scene.
    """
    (height, width), longest = size, max(size)
    return {
        "instance": lambda v: checked_integer(v, "instance", -(2**31), 2**31 - 1),
        "like": lambda v: checked_integer(v, "instance", -(2**31), 2**31 - 1),
        "label": lambda v: checked_integer(v, "label", 0, opt.label_nc - 1),
        "dy": lambda v: checked_integer(v, "dy", -height, height),
        "dx": lambda v: checked_integer(v, "dx", -width, width),
        "y": lambda v: checked_number(v, "y", -1e6, 1e6),
        "x": lambda v: checked_number(v, "x", -1e6, 1e6),
        "radius": lambda v: checked_number(v, "radius", 0, longest),
        "scale": lambda v: checked_number(v, "scale", 0.01, 2 * longest),
        "points": lambda v: _points(v, 2 * longest),
        "shape": shape_mask,
        "whole_class": _boolean,
        "feature": lambda v: feature_vector(v, opt),
        "features": lambda v: feature_vectors(v, opt),
    }


def check_maps(label: np.ndarray, inst: np.ndarray | None, opt: argparse.Namespace) -> None:
    """Check that a model with these options accepts the maps, (H, W) integers each."""
    if label.ndim != 2 or label.dtype.kind not in "iu" or not label.size:
        raise UserError(f"a label map of {label.dtype} {label.shape}: expected integers (H, W)")
    check_labels(label, opt)
    if opt.no_instance:
        return
    if inst is None:
        raise UserError("no instance map: this model was trained with one for every label map")
    if inst.shape != label.shape or inst.dtype.kind not in "iu":
        raise UserError(
            f"an instance map of {inst.dtype} {inst.shape} for a label map of {label.shape}"
        )
    if inst.min() < 0 or inst.max() > LARGEST_ID:
        raise UserError(
            f"instance ids {inst.min()} to {inst.max()}: the editor accepts 0 to {LARGEST_ID}, as "
            "16-bit PNG files do; renumber the instances"
        )


def check_labels(label: np.ndarray, opt: argparse.Namespace) -> None:
    """Check that a model knows the classes of label maps, integers of any shape."""
    known = label[label != opt.ignore_label] if opt.ignore_label is not None else label
    if known.size and not 0 <= known.min() <= known.max() < opt.label_nc:
        raise UserError(
            f"labels {known.min()} to {known.max()}, but the model knows 0 to {opt.label_nc - 1}"
        )


def feature_vector(feature: object, opt: argparse.Namespace) -> np.ndarray:
    """A feature as (feat_num,) float32."""
    if not uses_features(opt):
        raise UserError("this model has no styles: it was trained without features")
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused below
            vector = np.array(feature, np.float32)
    except (TypeError, ValueError, OverflowError):
        vector = np.zeros(0)
    if vector.shape != (opt.feat_num,) or not np.isfinite(vector).all():
        raise UserError(f"feature: expected {opt.feat_num} numbers, found {feature!r:.60}")
    return vector


def feature_vectors(features: object, opt: argparse.Namespace) -> dict[int, np.ndarray]:
    """Features by region, whose ids may be text, as in JSON."""
    if not isinstance(features, Mapping):
        raise UserError(f"features: expected numbers by region, found {features!r:.40}")
    try:
        return {int(region): feature_vector(v, opt) for region, v in features.items()}
    except (TypeError, ValueError) as error:
        raise UserError(f"features: expected region ids ({error})") from error


def checked_integer(value: object, what: str, low: int, high: int) -> int:
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        raise UserError(f"{what}: expected an integer from {low} to {high}, found {value!r:.40}")
    return int(value)


def checked_number(value: object, what: str, low: float, high: float) -> float:
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise UserError(f"{what}: expected a number from {low} to {high:g}, found {value!r:.40}")
    return float(value)


def _points(points: object, limit: float) -> list[list[float]]:
    """The points (y, x) of a brush stroke, with coordinates in [-limit, limit]."""
    if not isinstance(points, Sequence) or not 1 <= len(points) <= MAX_POINTS:
        raise UserError(f"points: expected 1 to {MAX_POINTS} pairs (y, x), found {points!r:.40}")
    for point in points:
        if not isinstance(point, Sequence) or len(point) != 2:
            raise UserError(f"points: expected (y, x), found {point!r:.40}")
    return [[checked_number(v, "a point of the stroke", -limit, limit) for v in p] for p in points]


def shape_mask(shape: object) -> np.ndarray:
    """Rows of "#" (the object) and "." as (h, w) bool."""
    try:
        signs = np.array([list(row) for row in shape])
    except (TypeError, ValueError):
        signs = np.zeros(0)
    known = signs.ndim == 2 and signs.dtype.kind == "U" and set(np.unique(signs)) <= {"#", "."}
    if not known or max(signs.shape) > 8192 or not (signs == "#").any():
        raise UserError("shape: expected rows of equal length, '#' where the object is, else '.'")
    return signs == "#"


def _boolean(value: object) -> bool:
    if type(value) is not bool:
        raise UserError(f"whole_class: expected true or false, found {value!r}")
    return value

"""Outlines and how they are filled."""

import math
from collections.abc import Iterable

from PIL import Image, ImageDraw

Point = tuple[float, float]
Outline = list[Point]  # a polygon; two points are the corners of an ellipse's box


def box(x0: float, y0: float, x1: float, y1: float) -> Outline:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def disc(x: float, y: float, radius: float, tall: float = 1.0) -> Outline:
    return [(x - radius, y - radius * tall), (x + radius, y + radius * tall)]


def bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Outline:
    """A straight bar between two points."""
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (y1 - y0) / length * width / 2, (x0 - x1) / length * width / 2
    return [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)]


def bounds(outlines: Iterable[Outline]) -> tuple[float, float, float, float]:
    """The smallest and largest coordinates: (x0, y0, x1, y1)."""
    x, y = zip(*(point for outline in outlines for point in outline))
    return min(x), min(y), max(x), max(y)


def fill(image: Image.Image, outline: Outline, value: int | tuple[int, int, int]) -> None:
    draw = ImageDraw.Draw(image)
    if len(outline) == 2:
        draw.ellipse(bounds([outline]), fill=value)
    else:
        draw.polygon(outline, fill=value)

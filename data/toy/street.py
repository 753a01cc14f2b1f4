"""The street without its things: perspective, road, houses and trees."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from PIL import Image

from data.toy.drawing import Outline, Point, box, disc, fill

# Cityscapes' own label ids
ROAD, SIDEWALK, BUILDING, VEGETATION, SKY = 7, 8, 11, 21, 23

# The colours of stuff at the image's top and bottom edge; in between they fade with the row only
BACKGROUND = {
    SKY: ((134, 178, 222), (190, 214, 232)),
    BUILDING: ((188, 164, 142), (158, 134, 116)),
    VEGETATION: ((104, 152, 80), (66, 112, 58)),
    SIDEWALK: ((206, 196, 184), (182, 172, 162)),
    ROAD: ((130, 128, 134), (104, 103, 110)),
}
# grey levels that details add to them
WINDOW, LEAVES, MARKING, CURB, SHADOW = -15, 9, 72, 14, -34


class Street:
    """A street as the camera sees it, and two drawings of it, in samples.

    A place on the ground is given by how near it is (0 at the horizon, 1 at the image's bottom
    edge; the distance is 1 / near) and how many metres it lies to the right of the road's middle.
    """

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.horizon = rng.uniform(0.36, 0.46) * height
        self.vanish = rng.uniform(0.34, 0.66) * width  # x where the road ends
        self.foot = rng.uniform(0.4, 0.6) * width  # x where the road meets the bottom edge
        self.bend = rng.uniform(-0.35, 0.35) * width
        # metres above the ground; a narrow image is taken from higher up, or a single car would
        # fill it
        self.camera = 2.0 * max(1.0, 1.6 * height / width)
        self.road = rng.uniform(3.2, 5.0)  # half the road's width in metres
        self.walk = rng.uniform(1.8, 3.2)  # width of a sidewalk in metres
        self.ids = Image.new("I", (width, height), SKY)  # what is where
        self.light = Image.new("L", (width, height), 128)  # what details add to it; 128: nothing

    def metre(self, near: float) -> float:
        """Samples per metre."""
        return near * (self.height - self.horizon) / self.camera

    def at(self, near: float, across: float = 0.0, up: float = 0.0) -> Point:
        """Where a point of the street lies in the image, `up` metres above the ground."""
        middle = self.vanish + (self.foot - self.vanish) * near + self.bend * near * (1 - near)
        y = self.horizon + near * (self.height - self.horizon)
        return middle + across * self.metre(near), y - up * self.metre(near)

    def band(self, near: float, far: float, left: float, right: float) -> Outline:
        """A strip of the ground along the road."""
        nears = np.linspace(near, far, 24)
        return [self.at(n, left) for n in nears] + [self.at(n, right) for n in nears[::-1]]

    def wall(self, start: float, end: float, across: float, low: float, high: float) -> Outline:
        """An upright strip along the road between two distances, `low` to `high` metres up."""
        nears = 1 / np.linspace(start, end, 5)
        top = [self.at(n, across, high) for n in nears[::-1]]
        return [self.at(n, across, low) for n in nears] + top

    def stuff(self, label: int, outline: Outline) -> None:
        """Draw a plain surface; it hides the details of what it covers."""
        fill(self.ids, outline, label)
        fill(self.light, outline, 128)

    def detail(self, light: int, outline: Outline) -> None:
        """Make a place lighter or darker by this many grey levels."""
        fill(self.light, outline, 128 + light)

    def photograph(self) -> Image.Image:
        """What has been drawn so far, in RGB: the colours of class and row, with details."""
        down = np.linspace(0, 1, self.height)[:, None]
        table = np.zeros((max(BACKGROUND) + 1, self.height, 3), np.int16)
        for label, (top, bottom) in BACKGROUND.items():
            table[label] = np.rint(np.array(top) * (1 - down) + np.array(bottom) * down)
        photo = table[np.asarray(self.ids), np.arange(self.height)[:, None]]  # (H, W, 3)
        photo += (np.asarray(self.light, np.int16) - 128)[..., None]
        return Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8))


def draw_street(rng: np.random.Generator, street: Street) -> None:
    """Sky, a distant skyline, sidewalks with rows of houses and trees, the road."""
    draw_skyline(rng, street)
    street.stuff(SIDEWALK, box(0, street.horizon, street.width, street.height))
    for side in (-1, 1):
        # far houses first: near ones hide them
        for start, end in reversed(list(plots(rng))):
            built = rng.random() < 0.8
            if built:
                draw_house(rng, street, side, start, end)
            if not built or rng.random() < 0.4:
                draw_tree(rng, street, side, rng.uniform(start, end))
    draw_road(street)


def draw_skyline(rng: np.random.Generator, street: Street) -> None:
    """Distant houses and trees where the street ends."""
    x = -rng.uniform(0, 0.1) * street.width
    while x < street.width:
        wide, high = rng.uniform(0.05, 0.13) * street.width, rng.uniform(0.03, 0.13) * street.height
        if rng.random() < 0.65:
            street.stuff(BUILDING, box(x, street.horizon - high, x + wide, street.horizon))
        else:
            draw_foliage(rng, street, (x + wide / 2, street.horizon - high / 3), wide / 2)
        x += wide


def plots(rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Distances between which a house can stand, from beside the camera into the distance."""
    start = rng.uniform(0.5, 0.9)
    while start < 13:
        end = start + rng.uniform(0.7, 2.0) * (1 + start / 6)
        yield start, end
        start = end


def draw_house(
    rng: np.random.Generator, street: Street, side: int, start: float, end: float
) -> None:
    """A front along the sidewalk with rows of windows, and the side wall that faces us."""
    across = side * (street.road + street.walk)
    storeys = int(rng.integers(2, 5))
    high = 0.6 + 2.1 * storeys
    corners = box(across, 0, across + side * 7, high)
    street.stuff(BUILDING, [street.at(1 / start, *corner) for corner in corners])
    street.stuff(BUILDING, street.wall(start, end, across, 0, high))
    columns = max(2, round((end - start) / 0.4))
    for left, right in pairwise(np.linspace(start, end, columns + 1)):
        if left > 8:  # too far to be seen
            break
        margin = (right - left) * 0.26
        for low in 0.75 + 2.1 * np.arange(storeys):
            pane = street.wall(left + margin, right - margin, across, low, low + 1.2)
            street.detail(WINDOW, pane)


def draw_tree(rng: np.random.Generator, street: Street, side: int, distance: float) -> None:
    """A tree on the outer half of the sidewalk. Its trunk is vegetation too, as in Cityscapes."""
    across = side * (street.road + street.walk * 0.75)
    metre = street.metre(1 / distance)
    x, y = street.at(1 / distance, across)
    top = y - rng.uniform(2.6, 4.2) * metre
    street.stuff(VEGETATION, box(x - 0.13 * metre, top, x + 0.13 * metre, y))
    draw_foliage(rng, street, (x, top), rng.uniform(1.0, 1.6) * metre)


def draw_foliage(rng: np.random.Generator, street: Street, centre: Point, radius: float) -> None:
    """A crown made of discs, lighter where the sun falls on it."""
    x, y = centre
    discs = []
    for angle in np.arange(7) * (2 * math.pi / 7) + rng.uniform(0, 1):
        r = radius * rng.uniform(0.42, 0.62)
        discs.append((x + radius * 0.62 * math.cos(angle), y + radius * 0.5 * math.sin(angle), r))
    for cx, cy, r in discs:
        street.stuff(VEGETATION, disc(cx, cy, r))
    for cx, cy, r in discs:
        street.detail(LEAVES, disc(cx - r * 0.2, cy - r * 0.25, r * 0.5))


def draw_road(street: Street) -> None:
    """The road, its curbs, a dashed line in the middle and a solid one on each side."""
    half = street.road
    for side in (-1, 1):
        street.detail(CURB, street.band(1.2, 0.04, side * half, side * (half + 0.25)))
    street.stuff(ROAD, street.band(1.2, 0.01, -half, half))
    for side in (-1, 1):
        street.detail(MARKING, street.band(1.2, 0.1, side * (half - 0.4), side * (half - 0.28)))
    for start in np.arange(0.7, 8, 1.0):
        street.detail(MARKING, street.band(1 / start, 1 / (start + 0.45), -0.07, 0.07))

"""Street scenes drawn by program, laid out on disk exactly as the Cityscapes download.

    python -m data.toy_cityscapes --out datasets/toy_raw --train 200 --val 20 --size 256x128
    python prepare_cityscapes.py --raw datasets/toy_raw --out datasets/toy

What the background looks like follows from the label map and the place in the picture. What a
thing (person, rider, car, bus, bicycle) looks like does not: each takes a colour out of its class's
palette, which the label map does not tell. That is what instance features are for.

Everything is drawn SUPERSAMPLE times too large. A pixel of the photograph is the mean of its
samples, a pixel of the maps is the sample at its centre: the maps are exact and agree with the
photograph and with each other.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from util.errors import UserError, brief, run

SUPERSAMPLE = 3  # odd, so that one sample lies at the centre of the pixel
SMALLEST, LARGEST = 32, 8192  # pixels: a person wider than one, a drawing that fits into memory
LARGE = 1 / 64  # of the picture's area: encode_features.py clusters instances above it
CITIES = {"train": "toytown", "val": "toyville"}

# Cityscapes' own label ids
ROAD, SIDEWALK, BUILDING, POLE, VEGETATION, SKY = 7, 8, 11, 17, 21, 23
PERSON, RIDER, CAR, BUS, BICYCLE = 24, 25, 26, 28, 33

Colour = tuple[int, int, int]
Point = tuple[float, float]

# The colours of things, RGB in [0, 255]. Far enough apart that a thing's mean colour, windows and
# shading included, is nearest to its own.
PALETTES: dict[int, list[Colour]] = {
    PERSON: [
        (200, 62, 56), (62, 98, 192), (224, 184, 72), (66, 150, 88), (222, 216, 206), (48, 46, 56),
    ],
    RIDER: [(234, 122, 44), (34, 150, 152), (190, 64, 142), (46, 60, 138), (224, 222, 216)],
    CAR: [
        (198, 46, 46), (48, 88, 184), (226, 226, 222), (44, 45, 50), (232, 186, 62), (62, 142, 84),
    ],
    BUS: [(240, 192, 52), (190, 50, 44), (52, 100, 180), (226, 224, 218), (70, 150, 94)],
    BICYCLE: [(206, 56, 56), (56, 100, 200), (56, 56, 60), (88, 186, 132), (238, 146, 48)],
}  # fmt: skip

# The colours of stuff at the picture's top and bottom edge; in between they fade with the row only
BACKGROUND: dict[int, tuple[Colour, Colour]] = {
    SKY: ((134, 178, 222), (190, 214, 232)),
    BUILDING: ((188, 164, 142), (158, 134, 116)),
    VEGETATION: ((104, 152, 80), (66, 112, 58)),
    SIDEWALK: ((206, 196, 184), (182, 172, 162)),
    ROAD: ((130, 128, 134), (104, 103, 110)),
}
POLE_COLOUR = (94, 97, 102)
NOISE = 2.0  # grey levels, standard deviation
# grey levels that details add to the background
WINDOW, LEAVES, MARKING, CURB, SHADOW = -15, 9, 72, 14, -34

# How a part of a thing is coloured: a number shades the body colour, a name is one of these.
# Glass is half the body colour, so that even a mostly hidden car shows its own.
GLASS = (66, 82, 100)
FIXED = {
    "tyre": (38, 38, 42),
    "skin": (214, 168, 140),
    "lamp": (214, 60, 48),
    "helmet": (70, 70, 76),
    "pole": POLE_COLOUR,
    "light": (226, 222, 204),
}


@dataclass(frozen=True)
class Part:
    """A polygon, or an ellipse given by two corners of its box.

    In metres from the foot of the thing, y upward.
    """

    points: list[Point]
    tone: float | str
    round: bool = False


def box(x0: float, y0: float, x1: float, y1: float, tone: float | str) -> Part:
    return Part([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], tone)


def disc(x: float, y: float, radius: float, tone: float | str, tall: float = 1.0) -> Part:
    return Part(
        [(x - radius, y - radius * tall), (x + radius, y + radius * tall)], tone, round=True
    )


def bar(x0: float, y0: float, x1: float, y1: float, width: float, tone: float | str) -> Part:
    """A straight bar between two points."""
    length = math.hypot(x1 - x0, y1 - y0)
    dx, dy = (y1 - y0) / length * width / 2, (x0 - x1) / length * width / 2
    return Part(
        [(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], tone
    )


# fmt: off
CAR_SIDE = [
    Part([(-2.15, .28), (-2.2, .8), (-1.55, .95), (-.95, 1.46), (.75, 1.46), (1.4, .98),
          (2.1, .84), (2.18, .28)], 1.0),
    Part([(-2.15, .28), (-2.17, .48), (2.16, .48), (2.18, .28)], .78),
    Part([(-.95, 1.46), (-1.02, 1.4), (.83, 1.4), (.75, 1.46)], 1.12),
    Part([(-1.3, .98), (-.88, 1.36), (-.15, 1.36), (-.15, .98)], "glass"),
    Part([(-.03, .98), (-.03, 1.36), (.68, 1.36), (1.14, .98)], "glass"),
    disc(-1.3, .33, .33, "tyre"), disc(-1.3, .33, .17, 1.0),
    disc(1.32, .33, .33, "tyre"), disc(1.32, .33, .17, 1.0),
    box(-2.19, .66, -2.0, .8, "lamp"),
]
CAR_REAR = [
    box(-.82, 0, -.58, .4, "tyre"), box(.58, 0, .82, .4, "tyre"),
    Part([(-.88, .25), (-.92, .6), (-.9, .92), (-.76, 1.0), (-.6, 1.46), (.6, 1.46), (.76, 1.0),
          (.9, .92), (.92, .6), (.88, .25)], 1.0),
    Part([(-.88, .25), (-.9, .46), (.9, .46), (.88, .25)], .78),
    Part([(-.6, 1.46), (-.62, 1.4), (.62, 1.4), (.6, 1.46)], 1.12),
    Part([(-.64, 1.0), (-.52, 1.36), (.52, 1.36), (.64, 1.0)], "glass"),
    box(-.86, .68, -.62, .84, "lamp"), box(.62, .68, .86, .84, "lamp"),
    box(-.24, .56, .24, .68, .9),
]
BUS_REAR = [
    box(-1.15, 0, -.8, .5, "tyre"), box(.8, 0, 1.15, .5, "tyre"),
    Part([(-1.24, .32), (-1.25, 2.8), (-1.1, 3.0), (1.1, 3.0), (1.25, 2.8), (1.24, .32)], 1.0),
    box(-1.24, .32, 1.24, .6, .78), Part([(-1.1, 3.0), (-1.2, 2.88), (1.2, 2.88), (1.1, 3.0)], 1.1),
    box(-1.0, 1.55, 1.0, 2.4, "glass"), box(-.8, 2.55, .8, 2.78, .7),
    box(-1.18, .8, -.95, 1.05, "lamp"), box(.95, .8, 1.18, 1.05, "lamp"),
]
BUS_SIDE = [
    Part([(-3.4, .35), (-3.45, 2.7), (-3.3, 2.95), (3.3, 2.95), (3.45, 2.7), (3.4, .35)], 1.0),
    box(-3.42, .35, 3.42, .62, .78), box(-3.36, 2.82, 3.36, 2.95, 1.1),
    *(box(x, 1.5, x + 1.0, 2.4, "glass") for x in (-3.2, -2.05, -.9, .25, 1.4)),
    box(2.6, .5, 3.2, 2.4, "glass"),
    disc(-2.2, .45, .45, "tyre"), disc(-2.2, .45, .22, 1.0),
    disc(1.9, .45, .45, "tyre"), disc(1.9, .45, .22, 1.0),
]
PERSON_WALKING = [
    Part([(-.34, 0), (-.02, .85), (.2, .85), (-.14, 0)], .7),
    Part([(.3, 0), (-.08, .85), (.2, .85), (.5, 0)], .8),
    Part([(-.22, .8), (-.27, 1.42), (-.12, 1.5), (.14, 1.5), (.27, 1.42), (.22, .8)], 1.0),
    Part([(.08, 1.42), (.24, .78), (.36, .82), (.27, 1.44)], .86),
    disc(0, 1.64, .13, "skin", 1.15),
]
PERSON_STANDING = [
    box(-.21, 0, -.02, .85, .7), box(.02, 0, .21, .85, .8), box(-.21, .7, .21, .85, .75),
    Part([(-.24, .78), (-.3, 1.42), (-.14, 1.5), (.14, 1.5), (.3, 1.42), (.24, .78)], 1.0),
    Part([(-.3, 1.42), (-.37, .8), (-.27, .8), (-.2, 1.42)], .86),
    Part([(.3, 1.42), (.37, .8), (.27, .8), (.2, 1.42)], .86),
    disc(0, 1.64, .13, "skin", 1.15),
]
BICYCLE_SIDE = [
    disc(-.54, .35, .35, .8), disc(-.54, .35, .28, 1.1), disc(.54, .35, .35, .8),
    disc(.54, .35, .28, 1.1),
    bar(-.54, .35, -.16, .84, .07, .9), bar(-.54, .35, .02, .3, .07, .9),
    bar(-.18, .88, .02, .3, .09, 1.0), bar(.02, .3, .4, .86, .09, 1.0),
    bar(-.16, .8, .4, .82, .09, 1.0), bar(.36, 1.02, .54, .35, .08, .9),
    bar(-.32, .92, -.06, .92, .09, "tyre"), bar(.3, 1.02, .46, 1.0, .07, "tyre"),
]
RIDER_SIDE = [
    Part([(-.26, .94), (-.02, .94), (.2, .62), (.06, .26), (-.06, .3), (.02, .6)], .76),
    Part([(-.3, .9), (-.16, 1.4), (.02, 1.52), (.2, 1.44), (.0, .9)], 1.0),
    Part([(.04, 1.42), (.4, 1.1), (.44, 1.0), (.34, 1.0), (.0, 1.26)], .88),
    disc(.2, 1.62, .13, "skin", 1.1),
    Part([(.04, 1.64), (.08, 1.78), (.22, 1.82), (.36, 1.74), (.36, 1.66)], "helmet"),
]
LAMP_POST = [
    box(-.09, 0, .09, 5.2, "pole"), box(-.16, 0, .16, .5, "pole"),
    Part([(-.09, 5.2), (1.1, 5.35), (1.1, 5.2), (.09, 5.05)], "pole"),
]
SIGN_POST = [box(-.07, 0, .07, 3.0, "pole")]
# fmt: on

SHAPES = {
    PERSON: [PERSON_WALKING, PERSON_STANDING],
    RIDER: [RIDER_SIDE],
    CAR: [CAR_SIDE, CAR_REAR],
    BUS: [BUS_REAR, BUS_SIDE],
    BICYCLE: [BICYCLE_SIDE],
}


@dataclass(frozen=True)
class Scene:
    """A photograph with its maps.

    photo: HWC uint8 RGB; label: HW uint8, Cityscapes' label ids; instance: HW uint16, the label of
    stuff, label * 1000 + n of things; styles: instance id -> index into PALETTES[label].
    """

    photo: np.ndarray
    label: np.ndarray
    instance: np.ndarray
    styles: dict[int, int]


@dataclass(frozen=True)
class Street:
    """The ground plane as the camera sees it, in samples of the drawing.

    A place on it is given by how near it is (0 at the horizon, 1 at the picture's bottom edge; the
    distance is 1 / near) and how many metres it lies to the right of the middle of the road.
    """

    width: int
    height: int
    horizon: float
    vanish: float  # x where the road ends
    foot: float  # x where the road meets the bottom edge
    bend: float
    camera: float  # metres above the ground
    road: float  # half the road's width in metres
    walk: float  # width of a sidewalk in metres

    def metre(self, near: float) -> float:
        """Samples per metre."""
        return near * (self.height - self.horizon) / self.camera

    def at(self, near: float, across: float = 0.0, up: float = 0.0) -> Point:
        """Where a point of the street lies in the picture, `up` metres above the ground."""
        middle = self.vanish + (self.foot - self.vanish) * near + self.bend * near * (1 - near)
        y = self.horizon + near * (self.height - self.horizon)
        return middle + across * self.metre(near), y - up * self.metre(near)

    def band(self, near: float, far: float, left: float, right: float) -> list[Point]:
        """A strip of the ground along the road."""
        steps = np.linspace(near, far, 24)
        return [self.at(n, left) for n in steps] + [self.at(n, right) for n in steps[::-1]]

    def wall(self, start: float, end: float, across: float, low: float, high: float) -> list[Point]:
        """An upright strip along the road between two distances, `low` to `high` metres up."""
        nears = 1 / np.linspace(start, end, 5)
        return [self.at(n, across, low) for n in nears] + [
            self.at(n, across, high) for n in nears[::-1]
        ]


@dataclass(frozen=True)
class Thing:
    """Something upright that stands on the street; a pole too, which is stuff and has no style."""

    id: int
    parts: list[Part]
    foot: Point
    metre: float  # samples per metre
    mirror: int  # 1, or -1 to face the other way
    colour: Colour

    def project(self, points: list[Point]) -> list[Point]:
        x, y = self.foot
        return [(x + u * self.metre * self.mirror, y - v * self.metre) for u, v in points]

    def bounds(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in samples."""
        x, y = zip(*(point for part in self.parts for point in self.project(part.points)))
        return min(x), min(y), max(x), max(y)


class Canvas:
    """The two drawings behind a scene: who is where, and what details add to the colours."""

    def __init__(self, width: int, height: int) -> None:
        self.ids = Image.new("I", (width, height), SKY)
        self.light = Image.new("L", (width, height), 128)  # 128 adds nothing
        self.draw_ids = ImageDraw.Draw(self.ids)
        self.draw_light = ImageDraw.Draw(self.light)

    def stuff(self, label: int, points: list[Point], round: bool = False) -> None:
        """Draw a plain surface; it hides the details of what it covers."""
        fill(self.draw_ids, points, label, round)
        fill(self.draw_light, points, 128, round)

    def detail(self, light: int, points: list[Point], round: bool = False) -> None:
        """Make a place lighter or darker by so many grey levels."""
        fill(self.draw_light, points, 128 + light, round)


def fill(draw: ImageDraw.ImageDraw, points: list[Point], value: object, round: bool) -> None:
    """Fill a polygon, or the ellipse in the box between two points."""
    if round:
        (x0, y0), (x1, y1) = points
        draw.ellipse((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=value)
    else:
        draw.polygon(points, fill=value)


def draw_scene(rng: np.random.Generator, width: int, height: int) -> Scene:
    """One scene, drawn from the generator alone: the same generator state gives the same bytes.

    A scene where a thing is hidden so far that its colour cannot be told is drawn anew. (In a very
    long or tiny picture that may be every scene; the last one is then taken as it is.)
    """
    for _ in range(20):
        scene = draw_once(rng, width, height)
        if is_clear(scene):
            break
    return scene


def is_clear(scene: Scene) -> bool:
    """Whether every thing shows its colour and at least two cars are large."""
    large = scene.label.size * LARGE
    cars = [np.count_nonzero(scene.instance == id) for id in scene.styles if id // 1000 == CAR]
    shown = read_styles(scene.photo, scene.instance)
    return shown == scene.styles and sum(area > large for area in cars) >= 2


def draw_once(rng: np.random.Generator, width: int, height: int) -> Scene:
    """One scene, as it comes."""
    street = make_street(rng, width * SUPERSAMPLE, height * SUPERSAMPLE)
    canvas = Canvas(street.width, street.height)
    draw_surroundings(rng, street, canvas)
    draw_road(street, canvas)
    things, styles = place_things(rng, street)
    for thing in things:
        draw_shadow(thing, canvas)
    photo = paint_background(canvas)
    # far ones first; a rider shares the foot of the bicycle and comes after it
    for thing in sorted(things + place_poles(rng, street), key=lambda thing: thing.foot[1]):
        draw_thing(thing, canvas, photo)
    return develop(rng, canvas, photo, styles)


def make_street(rng: np.random.Generator, width: int, height: int) -> Street:
    """A street for a drawing of width x height samples."""
    return Street(
        width=width,
        height=height,
        horizon=rng.uniform(0.36, 0.46) * height,
        vanish=rng.uniform(0.34, 0.66) * width,
        foot=rng.uniform(0.4, 0.6) * width,
        bend=rng.uniform(-0.35, 0.35) * width,
        # a narrow picture is taken from higher up, or a single car would fill it
        camera=2.0 * max(1.0, 1.6 * height / width),
        road=rng.uniform(3.2, 5.0),
        walk=rng.uniform(1.8, 3.2),
    )


def draw_surroundings(rng: np.random.Generator, street: Street, canvas: Canvas) -> None:
    """Sidewalk up to the horizon, a distant skyline, rows of houses and trees on both sides."""
    draw_skyline(rng, street, canvas)
    right, bottom = street.width, street.height
    ground = [(0, street.horizon), (right, street.horizon), (right, bottom), (0, bottom)]
    canvas.stuff(SIDEWALK, ground)
    for side in (-1, 1):
        # far houses first: near ones hide them
        for start, end in reversed(list(plots(rng))):
            built = rng.random() < 0.8
            if built:
                draw_house(rng, street, canvas, side, start, end)
            if not built or rng.random() < 0.4:
                draw_tree(rng, street, canvas, side, rng.uniform(start, end))


def draw_skyline(rng: np.random.Generator, street: Street, canvas: Canvas) -> None:
    """Distant houses and trees where the street ends."""
    x = -rng.uniform(0, 0.1) * street.width
    while x < street.width:
        wide, high = rng.uniform(0.05, 0.13) * street.width, rng.uniform(0.03, 0.13) * street.height
        if rng.random() < 0.65:
            top = street.horizon - high
            base = street.horizon
            canvas.stuff(BUILDING, [(x, base), (x, top), (x + wide, top), (x + wide, base)])
        else:
            draw_foliage(rng, canvas, (x + wide / 2, street.horizon - high / 3), wide / 2)
        x += wide


def plots(rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Distances between which a house can stand, from beside the camera into the distance."""
    start = rng.uniform(0.5, 0.9)
    while start < 13:
        end = start + rng.uniform(0.7, 2.0) * (1 + start / 6)
        yield start, end
        start = end


def draw_house(
    rng: np.random.Generator, street: Street, canvas: Canvas, side: int, start: float, end: float
) -> None:
    """A front along the sidewalk with rows of windows, and the side wall that faces us."""
    across = side * (street.road + street.walk)
    storeys = int(rng.integers(2, 5))
    high = 0.6 + 2.1 * storeys
    corners = [(across, 0), (across, high), (across + side * 7, high), (across + side * 7, 0)]
    canvas.stuff(BUILDING, [street.at(1 / start, *corner) for corner in corners])
    canvas.stuff(BUILDING, street.wall(start, end, across, 0, high))
    columns = max(2, round((end - start) / 0.4))
    edges = np.linspace(start, end, columns + 1)
    for left, right in pairwise(edges):
        if left > 8:  # too far to be seen
            break
        margin = (right - left) * 0.26
        for storey in range(storeys):
            low = 0.75 + 2.1 * storey
            pane = street.wall(left + margin, right - margin, across, low, low + 1.2)
            canvas.detail(WINDOW, pane)


def draw_tree(
    rng: np.random.Generator, street: Street, canvas: Canvas, side: int, distance: float
) -> None:
    """A tree on the outer half of the sidewalk. Its trunk is vegetation too, as in Cityscapes."""
    near = 1 / distance
    across = side * (street.road + street.walk * 0.75)
    high, metre = rng.uniform(2.6, 4.2), street.metre(near)
    x, y = street.at(near, across)
    trunk = 0.13 * metre
    canvas.stuff(
        VEGETATION,
        [
            (x - trunk, y),
            (x - trunk, y - high * metre),
            (x + trunk, y - high * metre),
            (x + trunk, y),
        ],
    )
    draw_foliage(rng, canvas, street.at(near, across, high), rng.uniform(1.0, 1.6) * metre)


def draw_foliage(rng: np.random.Generator, canvas: Canvas, centre: Point, radius: float) -> None:
    """A crown made of discs, lighter where the sun falls on it."""
    x, y = centre
    discs = []
    for angle in np.arange(7) * (2 * math.pi / 7) + rng.uniform(0, 1):
        r = radius * rng.uniform(0.42, 0.62)
        cx, cy = x + radius * 0.62 * math.cos(angle), y + radius * 0.5 * math.sin(angle)
        discs.append((cx, cy, r))
    for cx, cy, r in discs:
        canvas.stuff(VEGETATION, [(cx - r, cy - r), (cx + r, cy + r)], round=True)
    for cx, cy, r in discs:
        cx, cy, r = cx - r * 0.2, cy - r * 0.25, r * 0.5
        canvas.detail(LEAVES, [(cx - r, cy - r), (cx + r, cy + r)], round=True)


def draw_road(street: Street, canvas: Canvas) -> None:
    """The road, its curbs, a dashed line in the middle and a solid one on each side."""
    half = street.road
    for side in (-1, 1):
        canvas.detail(CURB, street.band(1.2, 0.04, side * half, side * (half + 0.25)))
    canvas.stuff(ROAD, street.band(1.2, 0.01, -half, half))
    for side in (-1, 1):
        canvas.detail(MARKING, street.band(1.2, 0.1, side * (half - 0.4), side * (half - 0.28)))
    for start in np.arange(0.7, 8, 1.0):
        canvas.detail(MARKING, street.band(1 / start, 1 / (start + 0.45), -0.07, 0.07))


def place_things(rng: np.random.Generator, street: Street) -> tuple[list[Thing], dict[int, int]]:
    """Things where there is room for them, and the style of each. Overlaps stay partial."""
    things: list[Thing] = []
    styles: dict[int, int] = {}
    taken: list[tuple[float, float, float, float]] = []
    for labels, area in wishes(rng):
        for _ in range(30):
            group = propose(rng, street, labels, area, styles)
            bounds = group[0][0].bounds()
            if all(overlap(bounds, other) < 0.3 for other in taken):
                taken.append(bounds)
                things += [thing for thing, _ in group]
                styles |= {thing.id: style for thing, style in group}
                break
    return things, styles


def wishes(rng: np.random.Generator) -> list[tuple[tuple[int, ...], float | None]]:
    """What a scene should hold: labels that share a place, and their area in the picture, if told.

    The large ones come first, so that they find room.
    """

    def large() -> float:
        return rng.uniform(1.6, 2.6) * LARGE

    wanted: list[tuple[tuple[int, ...], float | None]] = [((CAR,), large()), ((CAR,), large())]
    for labels, chance in (((BUS,), 0.3), ((PERSON,), 0.3), ((BICYCLE,), 0.2), ((CAR,), 0.2)):
        if rng.random() < chance:
            wanted.append((labels, large()))
    for labels, most in (((CAR,), 4), ((BICYCLE, RIDER), 3), ((BICYCLE,), 3), ((BUS,), 2)):
        wanted += [(labels, None)] * int(rng.integers(0, most))
    return wanted + [((PERSON,), None)] * int(rng.integers(1, 5))


def propose(
    rng: np.random.Generator,
    street: Street,
    labels: tuple[int, ...],
    area: float | None,
    taken: dict[int, int],
) -> list[tuple[Thing, int]]:
    """Things of these labels at one random place, each with its style; ids follow those taken."""
    shapes = [SHAPES[label][rng.integers(len(SHAPES[label]))] for label in labels]
    mirror = int(rng.choice((-1, 1)))
    near = rng.uniform(0.24, 0.5) if area is None else near_for(street, shapes[0], area)
    x, y = street.at(near, place_across(rng, street, labels[0]))
    metre = street.metre(near)
    # A large thing is wholly in the picture, of others at least half
    left, _, right, _ = Thing(0, shapes[0], (0, 0), metre, mirror, (0, 0, 0)).bounds()
    margin = min((right - left) / 2 if area else 0, street.width / 2)
    x = min(max(x, margin), street.width - margin)
    group = []
    for label, shape in zip(labels, shapes):
        id = label * 1000 + sum(other // 1000 == label for other in taken)
        style = int(rng.integers(len(PALETTES[label])))
        group.append((Thing(id, shape, (x, y), metre, mirror, PALETTES[label][style]), style))
    return group


def near_for(street: Street, shape: list[Part], area: float) -> float:
    """How near a shape must stand to cover this share of the picture."""
    x, y = zip(*(point for part in shape for point in part.points))
    covered = 0.78 * (max(x) - min(x)) * (max(y) - min(y))  # square metres
    metre = math.sqrt(area * street.width * street.height / covered)
    return min(metre / street.metre(1.0), 0.96)


def place_across(rng: np.random.Generator, street: Street, label: int) -> float:
    """Metres right of the middle of the road: vehicles on it, most persons and bicycles beside."""
    side = rng.choice((-1, 1))
    if label in (CAR, BUS):
        return side * rng.uniform(0.25, 1.0) * (street.road - 1.0)
    if rng.random() < 0.3:
        return side * rng.uniform(0.0, 0.9) * street.road
    return side * (street.road + rng.uniform(0.1, 0.7) * street.walk)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The common area of two boxes as a share of the smaller one."""
    wide = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    high = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return wide * high / smaller


def place_poles(rng: np.random.Generator, street: Street) -> list[Thing]:
    """Lamp and sign posts along the curbs."""
    poles = []
    for side in (-1, 1):
        for near in rng.uniform(0.15, 0.55, size=rng.integers(1, 4)):
            parts = LAMP_POST if rng.random() < 0.6 else SIGN_POST
            foot = street.at(near, side * (street.road + 0.4))
            poles.append(Thing(POLE, parts, foot, street.metre(near), -side, POLE_COLOUR))
    return poles


def draw_shadow(thing: Thing, canvas: Canvas) -> None:
    """A dark ellipse on the ground below."""
    left, _, right, bottom = thing.bounds()
    depth = 0.18 * thing.metre
    canvas.detail(SHADOW, [(left, bottom - depth), (right, bottom + depth)], round=True)


def draw_thing(thing: Thing, canvas: Canvas, photo: Image.Image) -> None:
    """Draw its parts into the ids and the photograph."""
    draw_photo = ImageDraw.Draw(photo)
    for part in thing.parts:
        points = thing.project(part.points)
        fill(canvas.draw_ids, points, thing.id, part.round)
        fill(draw_photo, points, shade(thing.colour, part.tone), part.round)


def shade(colour: Colour, tone: float | str) -> Colour:
    """The colour of a part of a thing of this body colour."""
    if isinstance(tone, str) and tone in FIXED:
        return FIXED[tone]
    if tone == "glass":
        return tuple((c + g) // 2 for c, g in zip(colour, GLASS))
    return tuple(min(round(c * tone), 255) for c in colour)


def paint_background(canvas: Canvas) -> Image.Image:
    """Colour the stuff drawn so far by class and row, details added."""
    ids = np.asarray(canvas.ids)
    height = len(ids)
    down = np.linspace(0, 1, height)[:, None]
    table = np.zeros((max(BACKGROUND) + 1, height, 3), np.int16)
    for label, (top, bottom) in BACKGROUND.items():
        table[label] = np.rint(np.array(top) * (1 - down) + np.array(bottom) * down)
    photo = table.reshape(-1, 3)[ids * height + np.arange(height)[:, None]]  # (H, W, 3)
    photo += (np.asarray(canvas.light, np.int16) - 128)[..., None]
    return Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8))


def develop(
    rng: np.random.Generator, canvas: Canvas, photo: Image.Image, styles: dict[int, int]
) -> Scene:
    """From samples to pixels; the photograph gets its noise."""
    middle = SUPERSAMPLE // 2
    instance = np.asarray(canvas.ids)[middle::SUPERSAMPLE, middle::SUPERSAMPLE].astype(np.uint16)
    small = np.asarray(photo.reduce(SUPERSAMPLE), np.float32)
    noise = rng.standard_normal(small.shape, np.float32) * NOISE
    seen = set(np.unique(instance).tolist())
    return Scene(
        photo=np.clip(np.rint(small + noise), 0, 255).astype(np.uint8),
        label=np.where(instance < 1000, instance, instance // 1000).astype(np.uint8),
        instance=instance,
        styles={id: style for id, style in sorted(styles.items()) if id in seen},
    )


def nearest_style(label: int, colour: np.ndarray) -> int:
    """The index of the class's palette colour nearest to this RGB colour in [0, 255]."""
    return int(np.linalg.norm(np.array(PALETTES[label]) - colour, axis=1).argmin())


def read_styles(photo: np.ndarray, instance: np.ndarray) -> dict[int, int]:
    """Guess every thing's style from its mean colour: instance id -> palette index.

    photo: HWC RGB in [0, 255], for example a generated one; instance: HW ids. Where this equals
    Scene.styles, the things have the colours they were given.
    """
    ids = [int(id) for id in np.unique(instance) if id >= 1000]
    return {id: nearest_style(id // 1000, photo[instance == id].mean(axis=0)) for id in ids}


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """A generator of its own for each scene: it does not matter how many come before."""
    return np.random.default_rng([seed, list(CITIES).index(split), index])


def write_dataset(
    out: Path, train: int = 200, val: int = 20, size: tuple[int, int] = (256, 128), seed: int = 0
) -> None:
    """Write scenes of size (width, height) below `out`, laid out as the Cityscapes download.

    Beside the pictures: train.list and val.list (photograph and label map, one scene a line) and
    toy_styles.json, {stem: {instance id: palette index}}. Scenes of an earlier call that this one
    does not make again are removed.
    """
    check_request(out, train, val, size, seed)
    styles = {}
    for split, count in (("train", train), ("val", val)):
        remove_surplus(out, split, count)
        lines = []
        indices = tqdm(range(count), desc=f"draw {split}", disable=not sys.stderr.isatty())
        for index in indices:
            scene = draw_scene(scene_rng(seed, split, index), *size)
            stem = f"{CITIES[split]}_{index:06d}_000019"
            lines.append(" ".join(write_scene(out, split, stem, scene)) + "\n")
            styles[stem] = {str(id): style for id, style in scene.styles.items()}
        (out / f"{split}.list").write_text("".join(lines))
    (out / "toy_styles.json").write_text(json.dumps(styles, indent=1) + "\n")


def check_request(out: Path, train: int, val: int, size: tuple[int, int], seed: int) -> None:
    """Refuse what cannot be drawn, and a folder that holds real pictures."""
    if not SMALLEST <= min(size) <= max(size) <= LARGEST:
        raise UserError(
            f"--size {size[0]}x{size[1]}: width and height must be {SMALLEST} to {LARGEST} pixels"
        )
    for flag, value in (("--train", train), ("--val", val), ("--seed", seed)):
        if value < 0:
            raise UserError(f"{flag} {value} must be 0 or more")
    if train + val == 0:
        raise UserError("--train 0 --val 0 asks for no scenes: give at least one of them")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    cities = {path.name for path in out.glob("leftImg8bit/*/*")} - set(CITIES.values())
    if cities:
        raise UserError(
            f"--out {out} holds other pictures ({brief(sorted(cities))}): give a folder of its own"
        )


def remove_surplus(out: Path, split: str, count: int) -> None:
    """Remove the scenes of an earlier, larger set."""
    city = CITIES[split]
    for path in out.glob(f"*/{split}/{city}/{city}_*_000019_*.png"):
        if int(path.name.split("_")[1]) >= count:
            path.unlink()


def write_scene(out: Path, split: str, stem: str, scene: Scene) -> tuple[str, str]:
    """Write the three pictures; return photograph and label map relative to `out`."""
    photo = f"leftImg8bit/{split}/{CITIES[split]}/{stem}_leftImg8bit.png"
    label = f"gtFine/{split}/{CITIES[split]}/{stem}_gtFine_labelIds.png"
    instance = label.replace("_labelIds", "_instanceIds")
    for name, pixels in (photo, scene.photo), (label, scene.label), (instance, scene.instance):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(out / name)  # uint16 becomes a 16-bit PNG
    return photo, label


def parse_size(text: str) -> tuple[int, int]:
    """ "256x128" -> (256, 128)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise UserError(f"--size {text} is not a size: write WIDTHxHEIGHT, for example 256x128")
    return int(match[1]), int(match[2])


def fail(message: str) -> NoReturn:
    raise UserError(message)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data.toy_cityscapes", description="Draw toy street scenes."
    )
    parser.error = fail  # one line, without the usage
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--train", type=int, default=200, help="scenes to train on")
    parser.add_argument("--val", type=int, default=20, help="scenes to test on")
    parser.add_argument("--size", default="256x128", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes")
    args = parser.parse_args()
    try:
        write_dataset(args.out, args.train, args.val, parse_size(args.size), args.seed)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error}") from error
    print(f"{args.train} + {args.val} scenes of {args.size} in {args.out}")
    print(f"next: python prepare_cityscapes.py --raw {args.out} --out ./datasets/toy")


if __name__ == "__main__":
    run(main)

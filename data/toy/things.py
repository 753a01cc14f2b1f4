"""What stands on the street: choosing, placing and drawing it."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data.toy import shapes
from data.toy.drawing import Outline, Point, bounds, fill
from data.toy.shapes import BICYCLE, BUS, CAR, PALETTES, PERSON, RIDER, Shape
from data.toy.street import SHADOW, Street

POLE = 17  # Cityscapes' label id
LARGE = 1 / 64  # of the image's area: encode_features.py clusters instances above it


@dataclass(frozen=True)
class Thing:
    """Something upright on the street; also a pole, which is stuff and has no style."""

    id: int  # label * 1000 + n; of poles the label
    shape: Shape
    foot: Point
    metre: float  # samples per metre
    mirror: int  # 1, or -1 to face the other way
    style: int = 0  # index into PALETTES[label]

    def outlines(self) -> list[Outline]:
        """Its parts in samples of the drawing."""
        x, y = self.foot
        return [
            [(x + u * self.metre * self.mirror, y - v * self.metre) for u, v in outline]
            for _, outline in self.shape
        ]

    def draw_shadow(self, street: Street) -> None:
        """A dark ellipse on the ground below."""
        left, _, right, bottom = bounds(self.outlines())
        depth = 0.18 * self.metre
        street.detail(SHADOW, [(left, bottom - depth), (right, bottom + depth)])

    def draw(self, street: Street, photo: Image.Image) -> None:
        colour = shapes.FIXED["pole"] if self.id == POLE else PALETTES[self.id // 1000][self.style]
        for (tone, _), outline in zip(self.shape, self.outlines()):
            fill(street.ids, outline, self.id)
            fill(photo, outline, shapes.shade(colour, tone))


def place_things(rng: np.random.Generator, street: Street) -> list[Thing]:
    """Things where there is room for them. Overlaps stay partial."""
    things: list[Thing] = []
    taken: list[tuple[float, float, float, float]] = []
    for labels, area in wanted_groups(rng):
        for _ in range(30):
            group = random_group(rng, street, labels, area, things)
            place = bounds(group[0].outlines())
            if all(overlap(place, other) < 0.3 for other in taken):
                taken.append(place)
                things += group
                break
    return things


def wanted_groups(rng: np.random.Generator) -> list[tuple[tuple[int, ...], float | None]]:
    """What a scene should hold: labels that share a place, and their area in the image, if fixed.

    The large ones come first, so that they find room.
    """

    def large() -> float:
        return rng.uniform(1.6, 2.6) * LARGE

    wanted: list[tuple[tuple[int, ...], float | None]] = [((CAR,), large()), ((CAR,), large())]
    for label, chance in ((BUS, 0.3), (PERSON, 0.3), (BICYCLE, 0.2), (CAR, 0.2)):
        if rng.random() < chance:
            wanted.append(((label,), large()))
    for labels, most in (((CAR,), 4), ((BICYCLE, RIDER), 3), ((BICYCLE,), 3), ((BUS,), 2)):
        wanted += [(labels, None)] * int(rng.integers(0, most))
    return wanted + [((PERSON,), None)] * int(rng.integers(1, 5))


def random_group(
    rng: np.random.Generator,
    street: Street,
    labels: tuple[int, ...],
    area: float | None,
    placed: list[Thing],
) -> list[Thing]:
    """Things of these labels at one random place; their ids follow those already placed."""
    chosen = [shapes.SHAPES[label][rng.integers(len(shapes.SHAPES[label]))] for label in labels]
    mirror = int(rng.choice((-1, 1)))
    left, low, right, high = bounds(outline for _, outline in chosen[0])  # metres
    if area is None:
        near = rng.uniform(0.24, 0.5)
    else:
        covered = 0.78 * (right - left) * (high - low)  # square metres
        metre = math.sqrt(area * street.width * street.height / covered)
        near = min(metre / street.metre(1.0), 0.96)
    metre = street.metre(near)
    x, y = street.at(near, place_across(rng, street, labels[0]))
    # a large thing is entirely in the image, any other at least by half
    margin = min((right - left) * metre / 2 if area else 0, street.width / 2)
    foot = (min(max(x, margin), street.width - margin), y)
    group = []
    for label, shape in zip(labels, chosen):
        id = label * 1000 + sum(thing.id // 1000 == label for thing in placed)
        style = int(rng.integers(len(PALETTES[label])))
        group.append(Thing(id, shape, foot, metre, mirror, style))
    return group


def place_across(rng: np.random.Generator, street: Street, label: int) -> float:
    """Metres right of the road's middle: vehicles on the road, most people and bicycles beside."""
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
    return wide * high / min((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))


def place_poles(rng: np.random.Generator, street: Street) -> list[Thing]:
    """Lamp and sign posts along the curbs."""
    poles = []
    for side in (-1, 1):
        for near in rng.uniform(0.15, 0.55, size=rng.integers(1, 4)):
            shape = shapes.LAMP_POST if rng.random() < 0.6 else shapes.SIGN_POST
            foot = street.at(near, side * (street.road + 0.4))
            poles.append(Thing(POLE, shape, foot, street.metre(near), -side))
    return poles

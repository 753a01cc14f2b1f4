"""A whole scene: drawn, downsampled to pixels, and its colours read back."""

from dataclasses import dataclass

import numpy as np

from data.toy.shapes import CAR, PALETTES
from data.toy.street import Street, draw_street
from data.toy.things import LARGE, place_poles, place_things

SUPERSAMPLE = 3  # odd, so that one sample lies at the centre of the pixel
NOISE = 2.0  # grey levels, standard deviation


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


def draw_scene(rng: np.random.Generator, width: int, height: int) -> Scene:
    """One scene, drawn from the generator alone: the same generator state gives the same bytes.

    If a thing is hidden so far that its colour cannot be recognized, the scene is drawn again. (In
    a very long or tiny image that may be every scene; the last one is then kept as it is.)
    """
    for _ in range(20):
        scene = _draw_once(rng, width, height)
        if _is_clear(scene):
            break
    return scene


def _draw_once(rng: np.random.Generator, width: int, height: int) -> Scene:
    street = Street(rng, width * SUPERSAMPLE, height * SUPERSAMPLE)
    draw_street(rng, street)
    things = place_things(rng, street)
    for thing in things:
        thing.draw_shadow(street)
    photo = street.photograph()
    # far ones first; a rider stands where the bicycle does and comes after it
    for thing in sorted(things + place_poles(rng, street), key=lambda thing: thing.foot[1]):
        thing.draw(street, photo)

    middle = SUPERSAMPLE // 2
    instance = np.asarray(street.ids)[middle::SUPERSAMPLE, middle::SUPERSAMPLE].astype(np.uint16)
    small = np.asarray(photo.reduce(SUPERSAMPLE), np.float32)
    noise = rng.standard_normal(small.shape, np.float32) * NOISE
    styles = {thing.id: thing.style for thing in things}
    return Scene(
        photo=np.clip(np.rint(small + noise), 0, 255).astype(np.uint8),
        label=np.where(instance < 1000, instance, instance // 1000).astype(np.uint8),
        instance=instance,
        styles={id: styles[id] for id in np.unique(instance).tolist() if id in styles},
    )


def _is_clear(scene: Scene) -> bool:
    """Whether every thing shows its colour and at least two cars are large."""
    large = scene.label.size * LARGE
    cars = [np.count_nonzero(scene.instance == id) for id in scene.styles if id // 1000 == CAR]
    shown = read_styles(scene.photo, scene.instance)
    return shown == scene.styles and sum(area > large for area in cars) >= 2


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

"""A scene being edited: label map, instance map and features, changed object by object.

No networks here: models/ui_model.py generates the image. Every edit can be undone and redone
exactly, and is recorded as a dictionary of plain values from which apply() repeats it.
"""

import argparse
import functools
import inspect
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data.kinds import scene_kinds
from models.build import uses_features
from models.edit_checks import (
    LARGEST_ID,
    argument_checks,
    check_maps,
    checked_integer,
    checked_number,
    feature_vectors,
)
from models.masks import Point, box_of, components, is_inside, scaled, stroke
from models.styles import StyleChooser, Styles, instance_classes
from util.errors import UserError

MAX_UNDO = 1000  # edits that can be undone
HISTORY_BYTES = 64 << 20  # of compressed undo steps; the oldest are dropped
CITYSCAPES_THINGS = range(24, 34)  # classes with numbered instances
_CITYSCAPES_VOID = range(4)  # ego vehicle, image border: never used to fill a hole

Features = dict[int, np.ndarray | None]  # region id -> (feat_num,) float32, or None
Outcome = tuple[np.ndarray, np.ndarray, Features]  # label, inst, and the features that change


@dataclass(frozen=True, eq=False)  # arrays are not compared
class Selection:
    """A selected instance: its id, its class, and its pixels (H, W) bool."""

    instance: int
    label: int
    mask: np.ndarray


@dataclass(frozen=True)
class Change:
    """New contents of a box of the maps, and new features of some regions."""

    box: tuple[slice, slice]
    maps: bytes  # label and inst inside the box, compressed
    features: Features


def edit(method: Callable[..., Outcome]) -> Callable[..., bool]:
    """Make a method of Scene an edit: its arguments are checked, and what it returns is carried
    out and recorded, if it changes anything."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def checked(self: "Scene", /, *args: object, **kwargs: object) -> bool:
        try:
            given = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise UserError(f"edit {method.__name__}: {error}") from error
        given.apply_defaults()
        checks = argument_checks(self._opt, self.shape)
        arguments = {}
        for name, value in [*given.arguments.items()][1:]:
            if value is not None or signature.parameters[name].default is not None:
                arguments[name] = checks[name](value)
        return self._commit(method.__name__, arguments, *method(self, **arguments))

    return checked


class Scene:
    """Maps and features of one scene, with edits, undo and redo.

    The edits (EDITS below) return whether anything changed. Invalid arguments raise UserError and
    change nothing.

    label     (H, W) uint8, or int32 if the classes need it
    inst      (H, W) uint16 instance ids; for a model without instances, numbers of connected
              components (int32, as there may be more than 65536)
    features  region id -> (feat_num,) float32; a region is an instance, or with --label_feat a
              class. Empty for a model without features.
    edits     the edits since open(), as dictionaries that apply() takes
    version   counts the changes, including open()
    """

    def __init__(self, opt: argparse.Namespace, styles: Styles | None = None) -> None:
        """styles: class -> (styles, feat_num), for regions without features of their own."""
        self._opt = opt
        self.version = 0
        self.styles = styles or {}
        self.has_features = uses_features(opt)
        self.styles_by_instance = self.has_features and not opt.label_feat
        self.has_instances = not opt.no_instance

    def open(
        self,
        label: np.ndarray,
        inst: np.ndarray | None = None,
        name: str = "scene",
        features: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        """Open a scene; all earlier edits are discarded.

        label (H, W) integers 0 .. label_nc-1 (or ignore_label), inst (H, W) integers 0 .. 65535
        (needed unless --no_instance). Regions without features get a style of their class, chosen
        by (--seed, name, region) as test.py chooses it. Raises UserError for maps that do not fit.
        """
        opt = self._opt
        check_maps(label, inst, opt)
        kind = scene_kinds(opt.label_nc, ignore_label=opt.ignore_label)["label"]
        self.label = label.astype(kind.dtype)
        ids = inst if self.has_instances else components(self.label)
        self.inst = ids.astype(np.uint16 if self.has_instances else np.int32)
        self.name = name
        self.version += 1
        self.edits: list[dict] = []
        self._done: deque[Change] = deque(maxlen=MAX_UNDO)
        self._undone: list[tuple[dict, Change]] = []
        self._things = self._find_things()
        self._chooser = StyleChooser(self.styles, {}, opt.seed)
        self.features: dict[int, np.ndarray] = {}
        if self.has_features:
            classes = instance_classes(self.regions, self.label)
            self.features = self._chooser.choose(classes, name)
            self.features |= feature_vectors(features or {}, opt)
            self._chooser.missing.clear()  # from now on those of edits only
        self._opened = self._packed(self.label, self.inst), dict(self.features)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the scene."""
        return self.label.shape

    @property
    def regions(self) -> np.ndarray:
        """What features belong to, (H, W): instances, or classes with --label_feat."""
        return self.label if self._opt.label_feat else self.inst

    @property
    def as_opened(self) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """label, inst and features as they were opened (kept compressed). Read-only."""
        maps, features = self._opened
        return *self._unpacked(maps, self.shape), features

    def select(self, y: int, x: int) -> Selection:
        """The instance at a pixel. Raises UserError outside the image."""
        height, width = self.shape
        y, x = checked_integer(y, "y", 0, height - 1), checked_integer(x, "x", 0, width - 1)
        return self.selection(int(self.inst[y, x]))

    def selection(self, instance: int) -> Selection:
        """An instance by its id. Raises UserError if the scene has no such instance."""
        mask = self.inst == instance
        if not mask.any():
            raise UserError(f"instance {instance}: not in the scene (any more); select another")
        return Selection(instance, self._class_of(mask), mask)

    def feature(self, instance: int) -> np.ndarray | None:
        """The feature of an instance, (feat_num,), or None if it has none."""
        return self.features.get(self._region(self.selection(instance)))

    def without_style(self) -> list[int]:
        """The classes of regions that edits created without a feature, as there was no style."""
        return sorted(self._chooser.missing)

    # -- edits: from checked arguments to new maps and features ------------------------------

    @edit
    def set_style(
        self, instance: int, feature: Sequence[float], whole_class: bool = False
    ) -> Outcome:
        """Give an instance, or all instances of its class, a style: feat_num numbers."""
        chosen = self.selection(instance)
        regions = [self._region(chosen)]
        if whole_class and not self._opt.label_feat:
            ids = np.unique(self.inst[self.label == chosen.label]).tolist()
            regions = [i for i in ids if self._class_of(self.inst == i) == chosen.label]
        return self.label, self.inst, dict.fromkeys(regions, feature)

    @edit
    def set_styles(self, features: Mapping[int | str, Sequence[float]]) -> Outcome:
        """Set the styles of many regions at once: region id -> feat_num numbers.

        Ids may be text, as in JSON; ids that are not in the scene are ignored.
        """
        present = set(np.unique(self.regions).tolist())
        return self.label, self.inst, {i: v for i, v in features.items() if i in present}

    @edit
    def set_class(
        self,
        instance: int,
        label: int | None = None,
        like: int | None = None,
        feature: Sequence[float] | None = None,
    ) -> Outcome:
        """Turn an instance into one of another class.

        The new class is label, with feature or else a style of that class; or that of the instance
        like, with its feature if it has one. In classes with numbered instances it gets a new id.
        """
        chosen = self.selection(instance)
        if like is not None:
            other = self.selection(like)
            label, feature = other.label, self.features.get(self._region(other), feature)
            new = self._fresh_id(label) if label in self._things else other.instance
        elif label is not None:
            new = self._id_for(label)
        else:
            raise UserError("expected a label, or an instance to be like")
        if chosen.label == label and not (label in self._things and like is not None):
            return self.label, self.inst, {}
        return self._assigned(chosen.mask, label, new, feature)

    @edit
    def paint(
        self,
        points: Sequence[Point],
        label: int,
        radius: float,
        feature: Sequence[float] | None = None,
    ) -> Outcome:
        """Draw a line of a class through points (y, x) with a round brush.

        A line that begins on an instance of the class extends it. Otherwise, in a class with
        numbered instances, it becomes a new instance with feature or else a style of its class.
        """
        mask = stroke(points, radius, self.shape)
        if not mask.any():
            raise UserError("the stroke lies outside the image")
        y, x = map(round, points[0])
        under = int(self.inst[y, x]) if is_inside(y, x, self.shape) else None
        extends = under is not None and self._class_of(self.inst == under) == label
        return self._assigned(mask, label, under if extends else self._id_for(label), feature)

    @edit
    def add(
        self,
        shape: Sequence[str],
        label: int,
        y: float,
        x: float,
        scale: float = 1.0,
        feature: Sequence[float] | None = None,
    ) -> Outcome:
        """Add an object, centred at (y, x), at scale times its size.

        shape: its rows as text, "#" for the object, "." elsewhere. feature: its style, by
        default one of its class's.
        """
        largest = 2 * max(self.shape) / max(shape.shape)
        mask = scaled(shape, checked_number(scale, "scale", 0.01, max(0.01, largest)))
        if not mask.any():
            raise UserError(f"nothing is left of the object at {scale:g} times its size")
        top, left = (round(v - (side - 1) / 2) for v, side in zip((y, x), mask.shape))
        ys, xs = np.nonzero(mask)
        ys, xs = ys + top, xs + left
        inside = is_inside(ys, xs, self.shape)
        if not inside.any():
            raise UserError("the object would lie outside the image")
        return self._assigned((ys[inside], xs[inside]), label, self._id_for(label), feature)

    @edit
    def move(self, instance: int, dy: int, dx: int) -> Outcome:
        """Shift an instance; the nearest background fills what it uncovers.

        Pixels shifted out of the image are lost (until undo).
        """
        mask = self.selection(instance).mask
        ys, xs = np.nonzero(mask)
        inside = is_inside(ys + dy, xs + dx, self.shape)
        if not inside.any():
            raise UserError("that would shift the object out of the image; delete it instead")
        if dy == dx == 0:
            return self.label, self.inst, {}
        label, inst = self._erased(mask)
        ys, xs = ys[inside], xs[inside]
        label[ys + dy, xs + dx], inst[ys + dy, xs + dx] = self.label[ys, xs], instance
        return label, inst, {}

    @edit
    def delete(self, instance: int) -> Outcome:
        """Remove an instance; the nearest background fills the hole."""
        return *self._erased(self.selection(instance).mask), {}

    @edit
    def reset(self) -> Outcome:
        """Restore the scene as it was opened. This can be undone, too."""
        label, inst, features = self.as_opened
        return label, inst, dict.fromkeys(self.features) | features

    def apply(self, edit: Mapping) -> bool:
        """Carry out an edit in the form of self.edits. Raises UserError if that is impossible."""
        arguments = dict(edit) if isinstance(edit, Mapping) else {}
        tool = arguments.pop("tool", None)
        if tool not in EDITS:
            raise UserError(f"edit {tool!r}: expected one of {', '.join(EDITS)}")
        return getattr(self, tool)(**arguments)

    # -- undo and redo -----------------------------------------------------------------------

    @property
    def can_undo(self) -> bool:
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        return bool(self._undone)

    def undo(self) -> dict | None:
        """Undo the last edit; returns it, or None if there is none."""
        if not self._done:
            return None
        edit = self.edits.pop()
        self._undone.append((edit, self._swap(self._done.pop())))
        return edit

    def redo(self) -> dict | None:
        """Redo the edit that was undone last; returns it, or None if there is none."""
        if not self._undone:
            return None
        edit, change = self._undone.pop()
        self._done.append(self._swap(change))
        self.edits.append(edit)
        return edit

    def _commit(
        self, tool: str, arguments: dict, label: np.ndarray, inst: np.ndarray, features: Features
    ) -> bool:
        """Carry out and record an edit: new maps, new features of regions."""
        # even if unchanged: features are kept when their region vanishes
        vectors = [vector for vector in features.values() if vector is not None]
        features = {
            i: v for i, v in features.items() if not np.array_equal(v, self.features.get(i))
        }
        changed = (label != self.label) | (inst != self.inst)
        if not changed.any() and not features:
            return False
        box = box_of(changed) if changed.any() else np.s_[:0, :0]
        self._done.append(self._swap(Change(box, self._packed(label[box], inst[box]), features)))
        self._undone.clear()
        while sum(len(change.maps) for change in self._done) > HISTORY_BYTES:
            self._done.popleft()
        if tool in ("set_class", "paint", "add") and vectors:
            arguments = {**arguments, "feature": vectors[0]}  # apply() then needs no styles
        self.edits.append(_plain({"tool": tool, **arguments}))
        return True

    def _swap(self, change: Change) -> Change:
        """Put a change's contents into the scene; returns what was there before."""
        label, inst = self.label[change.box], self.inst[change.box]
        features = {i: self.features.get(i) for i in change.features}
        before = Change(change.box, self._packed(label, inst), features)
        label[:], inst[:] = self._unpacked(change.maps, label.shape)
        for i, vector in change.features.items():
            if vector is None:
                self.features.pop(i, None)
            else:
                self.features[i] = vector
        self.version += 1
        return before

    def _packed(self, label: np.ndarray, inst: np.ndarray) -> bytes:
        return zlib.compress(label.tobytes() + inst.tobytes(), 1)

    def _unpacked(self, maps: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        content = zlib.decompress(maps)
        split = shape[0] * shape[1] * self.label.itemsize
        label = np.frombuffer(content[:split], self.label.dtype).reshape(shape)
        return label, np.frombuffer(content[split:], self.inst.dtype).reshape(shape)

    # -- maps, ids, classes, features ----------------------------------------------------------

    def _assigned(
        self,
        where: np.ndarray | tuple[np.ndarray, np.ndarray],
        label: int,
        inst: int,
        feature: np.ndarray | None,
    ) -> Outcome:
        """The scene with a class and an instance assigned to pixels: a mask, or rows and columns. A
        new region gets the feature, or else a style of its class; an existing one keeps its own."""
        region = label if self._opt.label_feat else inst
        features = {}
        if self.has_features and not (self.regions == region).any():
            if feature is None:
                feature = self._chooser.choose({region: label}, self.name).get(region)
            features[region] = feature
        labels, ids = self.label.copy(), self.inst.copy()
        labels[where], ids[where] = label, inst
        return labels, ids, features

    def _erased(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The maps after an object is removed and the nearest pixels fill the hole.

        Only stuff fills it (road, not the next car), if there is any; otherwise other classes.
        """
        longest = max(span.stop - span.start for span in box_of(mask))
        near = box_of(mask, longest // 2 + 4)
        void = _CITYSCAPES_VOID if self._opt.label_nc == 35 else []
        if self._opt.ignore_label is not None:
            void = [*void, self._opt.ignore_label]
        things = [*self._things, *void]
        labels, ids = self.label.copy(), self.inst.copy()
        everywhere = np.s_[:, :]
        tries = (
            (near, things),
            (everywhere, things),
            (everywhere, [self._class_of(mask), *void]),  # if all other classes are things
            (everywhere, []),
        )
        for box, excluded in tries:
            hole = mask[box]
            source = ~hole & ~np.isin(labels[box], excluded)
            if source.any():
                nearest = ndimage.distance_transform_edt(
                    ~source, return_distances=False, return_indices=True
                )
                for array in (labels[box], ids[box]):
                    array[hole] = array[tuple(nearest[:, hole])]
                return labels, ids
        raise UserError("the object covers the whole scene: nothing is left to fill its place")

    def _class_of(self, mask: np.ndarray) -> int:
        """The class that most of a mask's pixels have."""
        values, counts = np.unique(self.label[mask], return_counts=True)
        return int(values[counts.argmax()])

    def _region(self, chosen: Selection) -> int:
        return chosen.label if self._opt.label_feat else chosen.instance

    def _find_things(self) -> set[int]:
        """Classes with numbered instances: Cityscapes' own, else those of the scene whose ids
        differ from the class."""
        if self._opt.label_nc == 35:
            return set(CITYSCAPES_THINGS)
        if not self.has_instances:
            return set()
        return set(np.unique(self.label[self.inst != self.label]).tolist())

    def _id_for(self, label: int) -> int:
        """The id for new pixels of a class: a new one for a thing, the class's own for stuff."""
        own = self.inst == label
        taken = own.any() and self._class_of(own) != label
        return self._fresh_id(label) if label in self._things or taken else label

    def _fresh_id(self, label: int) -> int:
        """An id that the scene does not use: class * 1000 + n if one of these is left."""
        free = np.bincount(self.inst.ravel(), minlength=LARGEST_ID + 1) == 0
        first = max(1, label) * 1000
        for start, stop in ((first, first + 1000), (1000, None)):
            if free[start:stop].any():
                return start + int(free[start:stop].argmax())
        if not self.has_instances:  # their numbers are in no file
            return len(free)
        raise UserError("the scene uses every instance id up to 65535: delete some objects")


EDITS = ("set_style", "set_styles", "set_class", "paint", "add", "move", "delete", "reset")


def shape_rows(mask: np.ndarray) -> list[str]:
    """A mask (h, w) bool as the rows that Scene.add takes."""
    return ["".join(row) for row in np.where(mask, "#", ".").tolist()]


def _plain(value: object) -> object:
    """An argument of an edit as a JSON value."""
    if isinstance(value, dict):
        return {str(key): _plain(content) for key, content in value.items()}
    if isinstance(value, np.ndarray):
        return shape_rows(value) if value.dtype == bool else value.tolist()
    return value

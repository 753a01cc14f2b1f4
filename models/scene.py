"""A scene under edit: label map, instance map and features, changed object by object.

Numpy only: models/ui_model.py generates the image. Every edit can be undone and redone to the
byte, and is recorded as a dictionary of plain values that apply() carries out again.
"""

import argparse
import inspect
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.edit_checks import (
    LARGEST_ID,
    check_maps,
    feature_vector,
    integer,
    number,
    region_id,
    shape_mask,
    stroke_points,
)
from models.masks import Box, Point, box_of, centred, components, nearest, pasted, scaled, stroke
from models.styles import StyleChooser, Styles, instance_classes
from util.errors import UserError

LEVELS = 1000  # edits that can be undone
HISTORY_BYTES = 64 << 20  # of compressed undo steps; the oldest are dropped
_CITYSCAPES_THINGS = range(24, 34)  # classes with numbered instances
_CITYSCAPES_VOID = range(4)  # ego vehicle, image border: never used to fill a hole

EDITS = ("set_style", "set_styles", "set_class", "paint", "add", "move", "delete", "reset")


@dataclass(frozen=True)
class Selection:
    """A selected instance: its id, its class, and its pixels (H, W) bool."""

    instance: int
    label: int
    mask: np.ndarray


@dataclass
class Change:
    """New contents of a box of the maps, and new features of some regions."""

    box: Box | None
    maps: bytes  # label and inst inside the box, compressed
    features: dict[int, np.ndarray | None]


class Scene:
    """Maps and features of one scene, with edits, undo and redo.

    The edits (set_style, set_styles, set_class, paint, add, move, delete, reset) return whether
    anything changed. Invalid arguments raise UserError and change nothing.

    label   (H, W) uint8, or int32 if the classes need it
    inst    (H, W) uint16 instance ids; for a model without instances, numbers of connected
            components (int32 if there are more than 65535)
    features    region id -> (feat_num,) float32; a region is an instance, or with --label_feat a
                class. Empty for a model without features.
    edits   the edits since open(), as dictionaries that apply() takes
    version counts the changes, open() among them
    """

    def __init__(self, opt: argparse.Namespace, styles: Styles | None = None) -> None:
        """styles: class -> (styles, feat_num), for regions without features of their own."""
        self._opt = opt
        self.version = 0
        self.styles = styles or {}
        self.has_features = opt.instance_feat or opt.label_feat
        self.has_instances = not opt.no_instance

    def open(
        self,
        label: np.ndarray,
        inst: np.ndarray | None = None,
        name: str = "scene",
        features: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        """Begin with a scene; all earlier edits are forgotten.

        label (H, W) integers 0 .. label_nc-1 (or ignore_label), inst (H, W) integers 0 .. 65535
        (needed unless --no_instance). Regions without features get a style of their class, chosen
        by (--seed, name, region) as test.py chooses it. Raises UserError for maps that do not fit.
        """
        check_maps(label, inst, self._opt)
        opt = self._opt
        ignored = opt.ignore_label if opt.ignore_label is not None else 0
        small = opt.label_nc <= 256 and 0 <= ignored <= 255
        self.label = label.astype(np.uint8 if small else np.int32)
        ids = inst if self.has_instances else components(self.label)
        self.inst = ids.astype(np.uint16 if ids.max() <= LARGEST_ID else np.int32)
        self.name = name
        self.version += 1
        self.edits: list[dict] = []
        self._done: deque[Change] = deque(maxlen=LEVELS)
        self._undone: list[tuple[dict, Change]] = []
        self._things = self._find_things()
        self._chooser = StyleChooser(self.styles, {}, opt.seed)
        self.features: dict[int, np.ndarray] = {}
        if self.has_features:
            classes = instance_classes(self.regions, self.label)
            self.features = self._chooser.choose(classes, name)
            self.features |= {i: self._vector(v) for i, v in (features or {}).items()}
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
    def first(self) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """label, inst and features as they were opened (kept compressed). Read-only."""
        maps, features = self._opened
        return *self._unpacked(maps, self.shape), features

    def select(self, y: int, x: int) -> Selection:
        """The instance at a pixel. Raises UserError outside of the image."""
        height, width = self.shape
        y, x = integer(y, "y", 0, height - 1), integer(x, "x", 0, width - 1)
        return self.selection(int(self.inst[y, x]))

    def selection(self, instance: int) -> Selection:
        """An instance by its id. Raises UserError if the scene has no such instance."""
        instance = integer(instance, "instance", -(2**31), 2**31 - 1)
        mask = self.inst == instance
        if not mask.any():
            raise UserError(f"instance {instance}: not in the scene (any more); select another")
        return Selection(instance, self._class_of(mask), mask)

    def instances_of(self, label: int) -> list[int]:
        """The ids of all instances of a class."""
        candidates = np.unique(self.inst[self.label == label]).tolist()
        return [i for i in candidates if self._class_of(self.inst == i) == label]

    def feature(self, instance: int) -> np.ndarray | None:
        """The feature of an instance, (feat_num,), or None if it has none."""
        return self.features.get(self._region(self.selection(instance)))

    # -- edits -------------------------------------------------------------------------------

    def set_style(self, instance: int, feature: Sequence[float], whole_class: bool = False) -> bool:
        """Give an instance, or all instances of its class, a style: feat_num numbers."""
        chosen = self.selection(instance)
        vector = self._vector(feature)
        if type(whole_class) is not bool:
            raise UserError(f"whole_class: expected true or false, found {whole_class!r}")
        if self._opt.label_feat:
            regions = [chosen.label]
        else:
            regions = self.instances_of(chosen.label) if whole_class else [chosen.instance]
        edit = {"instance": chosen.instance, "feature": vector.tolist()}
        return self._commit(
            {"tool": "set_style", **edit, "whole_class": whole_class},
            features=dict.fromkeys(regions, vector),
        )

    def set_styles(self, features: Mapping[int | str, Sequence[float]]) -> bool:
        """Set the styles of many regions at once: region id -> feat_num numbers.

        Ids may be text, as in JSON; ids that are not in the scene are ignored.
        """
        if not isinstance(features, Mapping):
            raise UserError(f"features: expected numbers by region, found {features!r:.40}")
        vectors = {region_id(key): self._vector(value) for key, value in features.items()}
        present = set(np.unique(self.regions).tolist())
        vectors = {i: vector for i, vector in vectors.items() if i in present}
        plain = {str(i): vector.tolist() for i, vector in vectors.items()}
        return self._commit({"tool": "set_styles", "features": plain}, features=vectors)

    def set_class(
        self,
        instance: int,
        label: int | None = None,
        like: int | None = None,
        feature: Sequence[float] | None = None,
    ) -> bool:
        """Turn an instance into one of another class.

        Either of the class label, with feature or else a style of that class; or of the class of
        the instance like, with its feature. Classes with numbered instances get a new id.
        """
        chosen = self.selection(instance)
        edit = {"tool": "set_class", "instance": chosen.instance}
        vector = self._optional_vector(feature)
        if like is None:
            label = self._known_class(label)
            new, edit["label"] = self._id_for(label), label
        else:
            model = self.selection(like)
            label, edit["like"] = model.label, model.instance
            new = self._fresh_id(label) if label in self._things else model.instance
            vector = self.features.get(self._region(model))
        if chosen.label == label and not (label in self._things and like is not None):
            return False
        box = box_of(chosen.mask)
        mask = chosen.mask[box.slices]
        new_feature = self._new_feature(new, label, vector)
        if like is None:
            edit = _with_feature(edit, new_feature)
        return self._commit(edit, box, *self._stamped(box, mask, label, new), new_feature)

    def paint(
        self,
        points: Sequence[Point],
        label: int,
        radius: float,
        feature: Sequence[float] | None = None,
    ) -> bool:
        """Draw a line of a class through points (y, x) with a round brush.

        A line that begins on an instance of the class extends it. Otherwise, in a class with
        numbered instances, it becomes a new instance with feature or else a style of its class.
        """
        label = self._known_class(label)
        radius = number(radius, "radius", 0, max(self.shape))
        path = stroke_points(points, self.shape)
        box, mask = stroke(path, radius, self.shape)
        if not mask.any():
            raise UserError("paint: the stroke lies outside of the image")
        under = self._instance_under(path[0])
        extends = under is not None and self._class_of(self.inst == under) == label
        new = under if extends else self._id_for(label)
        new_feature = self._new_feature(new, label, self._optional_vector(feature))
        edit = {"tool": "paint", "points": [list(point) for point in path], "label": label}
        edit = _with_feature({**edit, "radius": radius}, new_feature)
        return self._commit(edit, box, *self._stamped(box, mask, label, new), new_feature)

    def add(
        self,
        shape: Sequence[str],
        label: int,
        y: float,
        x: float,
        scale: float = 1.0,
        feature: Sequence[float] | None = None,
    ) -> bool:
        """Add an object, its centre at (y, x), at scale times its size.

        shape: its rows as text, "#" for the object, "." elsewhere. feature: its style, by
        default one of its class's.
        """
        label = self._known_class(label)
        mask = shape_mask(shape)
        largest = 2 * max(self.shape) / max(mask.shape)
        scale = number(scale, "scale", 0.01, max(0.01, largest))
        y, x = (number(v, n, -1e6, 1e6) for v, n in ((y, "y"), (x, "x")))
        vector = self._optional_vector(feature)
        large = scaled(mask, scale)
        box, part = pasted(large, centred(large.shape, y, x), self.shape)
        if not part.any():
            raise UserError("add: the object would lie outside of the image")
        new = self._id_for(label)
        new_feature = self._new_feature(new, label, vector)
        edit = {"tool": "add", "shape": list(shape), "label": label, "y": y, "x": x, "scale": scale}
        edit = _with_feature(edit, new_feature)
        return self._commit(edit, box, *self._stamped(box, part, label, new), new_feature)

    def move(self, instance: int, dy: int, dx: int) -> bool:
        """Shift an instance; the nearest background fills what it uncovers.

        Pixels shifted out of the image are lost (until undo).
        """
        chosen = self.selection(instance)
        height, width = self.shape
        dy, dx = integer(dy, "dy", -height, height), integer(dx, "dx", -width, width)
        old = box_of(chosen.mask)
        mask = chosen.mask[old.slices]
        box, part = pasted(mask, old.shifted(dy, dx), self.shape)
        if not part.any():
            raise UserError("move: that would shift the object out of the image; delete it")
        if dy == dx == 0:
            return False
        hole, label, inst = self._without(chosen.mask, old)
        both = hole.union(box)
        labels, ids = self.label[both.slices].copy(), self.inst[both.slices].copy()
        labels[hole.inside(both)], ids[hole.inside(both)] = label, inst
        at = box.inside(both)
        labels[at][part] = self.label[old.slices][box.shifted(-dy, -dx).inside(old)][part]
        ids[at][part] = chosen.instance
        edit = {"tool": "move", "instance": chosen.instance, "dy": dy, "dx": dx}
        return self._commit(edit, both, labels, ids)

    def delete(self, instance: int) -> bool:
        """Remove an instance; the nearest background fills the hole."""
        chosen = self.selection(instance)
        box, label, inst = self._without(chosen.mask, box_of(chosen.mask))
        return self._commit({"tool": "delete", "instance": chosen.instance}, box, label, inst)

    def reset(self) -> bool:
        """Restore the scene as it was opened. This can be undone, too."""
        label, inst, features = self.first
        box = box_of((self.label != label) | (self.inst != inst))
        changed = {i: features.get(i) for i in self.features.keys() | features.keys()}
        if box is None:
            return self._commit({"tool": "reset"}, features=changed)
        maps = label[box.slices], inst[box.slices]
        return self._commit({"tool": "reset"}, box, *maps, changed)

    def apply(self, edit: Mapping) -> bool:
        """Carry out an edit as self.edits holds it. Raises UserError if it cannot be."""
        arguments = dict(edit) if isinstance(edit, Mapping) else {}
        tool = arguments.pop("tool", None)
        if tool not in EDITS:
            raise UserError(f"edit {tool!r}: expected a tool of {', '.join(EDITS)}")
        method = getattr(self, tool)
        try:
            inspect.signature(method).bind(**arguments)
        except TypeError as error:
            raise UserError(f"edit {tool}: {error}") from error
        return method(**arguments)

    # -- undo and redo -----------------------------------------------------------------------

    @property
    def can_undo(self) -> bool:
        return bool(self._done)

    @property
    def can_redo(self) -> bool:
        return bool(self._undone)

    def undo(self) -> dict | None:
        """Take the last edit back; returns it, or None if there is none."""
        if not self._done:
            return None
        edit = self.edits.pop()
        self._undone.append((edit, self._swap(self._done.pop())))
        return edit

    def redo(self) -> dict | None:
        """Carry out the edit that was taken back last; returns it, or None if there is none."""
        if not self._undone:
            return None
        edit, change = self._undone.pop()
        self._done.append(self._swap(change))
        self.edits.append(edit)
        return edit

    # -- changes -----------------------------------------------------------------------------

    def _commit(
        self,
        edit: dict,
        box: Box | None = None,
        label: np.ndarray | None = None,
        inst: np.ndarray | None = None,
        features: Mapping[int, np.ndarray | None] | None = None,
    ) -> bool:
        """Carry out and record an edit: new contents of a box, new features of regions."""
        features = {
            i: v for i, v in (features or {}).items() if not _equal(v, self.features.get(i))
        }
        if box is not None:
            same = np.array_equal(label, self.label[box.slices])
            if same and np.array_equal(inst, self.inst[box.slices]):
                box = None
        if box is None and not features:
            return False
        maps = b"" if box is None else self._packed(label, inst)
        self._done.append(self._swap(Change(box, maps, features)))
        self.edits.append(edit)
        self._undone.clear()
        while sum(len(change.maps) for change in self._done) > HISTORY_BYTES:
            self._done.popleft()
        return True

    def _swap(self, change: Change) -> Change:
        """Put a change's contents into the scene; returns what was there before."""
        box = change.box
        before = Change(box, b"", {i: self.features.get(i) for i in change.features})
        if box is not None:
            label, inst = self.label[box.slices], self.inst[box.slices]
            before.maps = self._packed(label, inst)
            label[:], inst[:] = self._unpacked(change.maps, box.shape)
        for i, vector in change.features.items():
            if vector is None:
                self.features.pop(i, None)
            else:
                self.features[i] = vector
        self.version += 1
        return before

    def _packed(self, label: np.ndarray, inst: np.ndarray) -> bytes:
        content = label.astype(self.label.dtype).tobytes() + inst.astype(self.inst.dtype).tobytes()
        return zlib.compress(content, 1)

    def _unpacked(self, maps: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        content = zlib.decompress(maps)
        split = shape[0] * shape[1] * self.label.itemsize
        label = np.frombuffer(content[:split], self.label.dtype).reshape(shape)
        return label, np.frombuffer(content[split:], self.inst.dtype).reshape(shape)

    def _stamped(
        self, box: Box, mask: np.ndarray, label: int, inst: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The contents of a box with a class and an instance where mask is true."""
        labels, ids = self.label[box.slices].copy(), self.inst[box.slices].copy()
        labels[mask], ids[mask] = label, inst
        return labels, ids

    def _without(self, mask: np.ndarray, box: Box) -> tuple[Box, np.ndarray, np.ndarray]:
        """A box and its contents after an object is removed and the nearest pixels fill the hole.

        Only stuff fills it (road, not the next car), if there is any.
        """
        near = box.grown(max(box.shape) // 2 + 4).clipped(self.shape)
        whole = Box(0, self.shape[0], 0, self.shape[1])
        barred = [*self._things]
        if self._opt.label_nc == 35:
            barred += _CITYSCAPES_VOID
        if self._opt.ignore_label is not None:
            barred.append(self._opt.ignore_label)
        for window, unfit in ((near, barred), (whole, barred), (whole, [])):
            labels, ids = self.label[window.slices], self.inst[window.slices]
            hole = mask[window.slices]
            source = ~hole & ~np.isin(labels, unfit)
            if source.any():
                at = nearest(source)
                return (
                    window,
                    np.where(hole, labels[at], labels),
                    np.where(hole, ids[at], ids),
                )
        raise UserError("the object covers the whole scene: nothing could fill its place")

    # -- ids, classes, features --------------------------------------------------------------

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
            return set(_CITYSCAPES_THINGS)
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
        own = free[max(1, label) * 1000 : (max(1, label) + 1) * 1000]
        if own.any():
            return max(1, label) * 1000 + int(own.argmax())
        if not free[1000:].any():
            raise UserError("the scene uses every instance id up to 65535: delete some objects")
        return 1000 + int(free[1000:].argmax())

    def _new_feature(
        self, inst: int, label: int, vector: np.ndarray | None = None
    ) -> dict[int, np.ndarray | None]:
        """The feature of a new region; an existing one keeps its own."""
        region = label if self._opt.label_feat else inst
        if not self.has_features or (self.regions == region).any():
            return {}
        if vector is None:
            vector = self._chooser.choose({region: label}, self.name).get(region)
        return {region: vector}

    def _instance_under(self, point: Point) -> int | None:
        y, x = round(point[0]), round(point[1])
        inside = 0 <= y < self.shape[0] and 0 <= x < self.shape[1]
        return int(self.inst[y, x]) if inside else None

    # -- arguments ---------------------------------------------------------------------------

    def _known_class(self, label: object) -> int:
        return integer(label, "label", 0, self._opt.label_nc - 1)

    def _vector(self, feature: Sequence[float]) -> np.ndarray:
        """A feature from outside as (feat_num,) float32."""
        if not self.has_features:
            raise UserError("this model has no styles: it was trained without --instance_feat")
        return feature_vector(feature, self._opt.feat_num)

    def _optional_vector(self, feature: Sequence[float] | None) -> np.ndarray | None:
        """An optional feature; models without features ignore it."""
        return self._vector(feature) if feature is not None and self.has_features else None


def shape_rows(mask: np.ndarray) -> list[str]:
    """A mask (h, w) bool as the rows that Scene.add takes."""
    return ["".join(row) for row in np.where(mask, "#", ".").tolist()]


def _with_feature(edit: dict, features: Mapping[int, np.ndarray | None]) -> dict:
    """The edit with the feature chosen for its new region: apply() then needs no styles."""
    vectors = [vector for vector in features.values() if vector is not None]
    return {**edit, "feature": vectors[0].tolist()} if vectors else edit


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))

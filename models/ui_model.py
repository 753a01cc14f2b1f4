"""One scene being edited: maps that change object by object, and the photograph of them.

The tensors that the generator sees always agree with the maps, and an edit rebuilds only the box
that it changes. Every edit can be undone and redone to the byte, and is written down as a
dictionary of plain values that apply() carries out again.
"""

import inspect
import math
import threading
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.build import uses_features
from models.inference_model import InferenceModel, to_pictures
from models.instance_maps import edges, one_hot
from models.masks import Box, Point, box_of, centred, components, nearest, pasted, scaled, stroke
from models.styles import StyleChooser, Styles, instance_classes, paint
from util.errors import UserError
from util.pages.colours import label_picture

LEVELS = 1000  # edits that can be undone
HISTORY_BYTES = 64 << 20  # what they may take, compressed; the oldest give way
MOST_POINTS = 10_000  # of one brush stroke
_CITYSCAPES_THINGS = range(24, 34)  # classes whose objects are told apart
_CITYSCAPES_VOID = range(4)  # the car that films, the frame: nothing to fill a hole with
_LARGEST_ID = 65535  # a PNG file's


@dataclass(frozen=True)
class Selection:
    """What was selected: instance id, class, and the instance's pixels (H, W) bool."""

    instance: int
    label: int
    mask: np.ndarray


@dataclass
class Change:
    """What a box of the maps, and some regions' features, are to become (or were before)."""

    box: Box | None
    maps: bytes  # label and inst inside the box, compressed
    features: dict[int, np.ndarray | None]


class UIModel:
    """A scene and its photograph, for a user who steers single objects.

    open() takes the maps; select() tells what lies at a pixel; the edits (set_style, set_class,
    paint, add, move, delete, set_styles, reset) change the scene and return whether anything
    changed; undo() and redo() step through them; picture() draws. Wrong arguments of an edit
    raise UserError and change nothing.

    label   (H, W) uint8 or int32, classes
    inst    (H, W) int32, instance ids; for a model without instances, numbers of connected pieces
    features    region id -> (feat_num,) float32; a region is an instance, or with --label_feat a
                class. Empty for a model without features.
    edits   the edits since open(), as dictionaries that apply() takes
    drawn   how often the photograph was drawn since open()

    Networks may be shared by any number of scenes (see another); one at a time draws with them.
    A scene itself must not be used by two threads at once.
    """

    def __init__(
        self,
        networks: InferenceModel,
        styles: Styles | None = None,
        lock: "threading.Lock | None" = None,
    ) -> None:
        """styles: what to choose looks from. Raises UserError for a model of RGB pictures."""
        if networks.opt.label_nc == 0:
            raise UserError("--label_nc 0: the editor needs a model of label maps, not of pictures")
        self.networks = networks
        self.styles = styles or {}
        self._opt = networks.opt
        self._lock = lock or threading.Lock()
        self.has_features = uses_features(self._opt)
        self.has_instances = not self._opt.no_instance

    def another(self) -> "UIModel":
        """A model for another scene, on the same networks."""
        return UIModel(self.networks, self.styles, self._lock)

    # -- the scene ---------------------------------------------------------------------------

    def open(
        self,
        label: np.ndarray,
        inst: np.ndarray | None = None,
        name: str = "scene",
        features: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        """Begin with a scene; what was edited before is forgotten.

        label (H, W) integers 0 .. label_nc-1 (or ignore_label), inst (H, W) integers 0 .. 65535
        (needed unless --no_instance). Regions without features get a style of their class, drawn
        by (--seed, name, region) as test.py draws it. Raises UserError for maps that do not fit.
        """
        self._check_maps(label, inst)
        opt = self._opt
        ignored = opt.ignore_label if opt.ignore_label is not None else 0
        small = opt.label_nc <= 256 and 0 <= ignored <= 255
        self.label = label.astype(np.uint8 if small else np.int32)
        self.inst = inst.astype(np.int32) if self.has_instances else components(self.label)
        self.name = name
        self.drawn = 0
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
        self._first = self.label.copy(), self.inst.copy(), dict(self.features)
        self._allocate()

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
        """label, inst and features as they were opened. Not to be changed."""
        return self._first

    def select(self, y: int, x: int) -> Selection:
        """The instance at a pixel. Raises UserError outside of the picture."""
        height, width = self.shape
        y, x = _integer(y, "y", 0, height - 1), _integer(x, "x", 0, width - 1)
        return self.selection(int(self.inst[y, x]))

    def selection(self, instance: int) -> Selection:
        """An instance by its id. Raises UserError if the scene has no such instance."""
        instance = _integer(instance, "instance", -(2**31), 2**31 - 1)
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
        """Give an instance, or all instances of its class, a look: feat_num numbers."""
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
        """Give many regions their looks at once: region id -> feat_num numbers.

        Ids may be text, as in JSON; those that the scene does not have are passed over.
        """
        if not isinstance(features, Mapping):
            raise UserError(f"features: expected numbers by region, found {features!r:.40}")
        vectors = {_id(key): self._vector(value) for key, value in features.items()}
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

        Of the class label, looking like feature or else a style of that class; or of the class of
        the instance like, with its feature. Where objects of the class are told apart, it gets a
        fresh id.
        """
        chosen = self.selection(instance)
        edit = {"tool": "set_class", "instance": chosen.instance}
        vector = self._given(feature)
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
        look = self._look(new, label, vector)
        if like is None:
            edit = _with_look(edit, look)
        return self._commit(edit, box, *self._stamped(box, mask, label, new), look)

    def paint(
        self,
        points: Sequence[Point],
        label: int,
        radius: float,
        feature: Sequence[float] | None = None,
    ) -> bool:
        """Draw a line of a class through points (y, x) with a round brush.

        A line that begins on an instance of the class extends it. Else, where objects of the class
        are told apart, it becomes one of its own, looking like feature or else one of its class's
        styles.
        """
        label = self._known_class(label)
        radius = _number(radius, "radius", 0, max(self.shape))
        path = self._points(points)
        box, mask = stroke(path, radius, self.shape)
        if not mask.any():
            raise UserError("paint: the stroke lies outside of the picture")
        under = self._instance_under(path[0])
        extends = under is not None and self._class_of(self.inst == under) == label
        new = under if extends else self._id_for(label)
        look = self._look(new, label, self._given(feature))
        edit = {"tool": "paint", "points": [list(point) for point in path], "label": label}
        edit = _with_look({**edit, "radius": radius}, look)
        return self._commit(edit, box, *self._stamped(box, mask, label, new), look)

    def add(
        self,
        shape: Sequence[str],
        label: int,
        y: float,
        x: float,
        scale: float = 1.0,
        feature: Sequence[float] | None = None,
    ) -> bool:
        """Put a new object into the scene, its middle at (y, x), at scale times its size.

        shape: its rows as text, "#" where it is, "." where not. feature: its look, else one of
        its class's styles.
        """
        label = self._known_class(label)
        mask = self._shape_mask(shape)
        largest = 2 * max(self.shape) / max(mask.shape)
        scale = _number(scale, "scale", 0.01, max(0.01, largest))
        y, x = (_number(v, n, -1e6, 1e6) for v, n in ((y, "y"), (x, "x")))
        vector = self._given(feature)
        large = scaled(mask, scale)
        box, part = pasted(large, centred(large.shape, y, x), self.shape)
        if not part.any():
            raise UserError("add: the object would lie outside of the picture")
        new = self._id_for(label)
        look = self._look(new, label, vector)
        edit = {"tool": "add", "shape": list(shape), "label": label, "y": y, "x": x, "scale": scale}
        edit = _with_look(edit, look)
        return self._commit(edit, box, *self._stamped(box, part, label, new), look)

    def move(self, instance: int, dy: int, dx: int) -> bool:
        """Shift an instance; its surroundings fill what it uncovers.

        What is shifted out of the picture is gone (until undo).
        """
        chosen = self.selection(instance)
        height, width = self.shape
        dy, dx = _integer(dy, "dy", -height, height), _integer(dx, "dx", -width, width)
        old = box_of(chosen.mask)
        mask = chosen.mask[old.slices]
        box, part = pasted(mask, old.shifted(dy, dx), self.shape)
        if not part.any():
            raise UserError("move: that would shift the object out of the picture; delete it")
        if dy == dx == 0:
            return False
        hole, label, inst = self._without(chosen.mask, old)
        both = hole.union(box)
        labels, ids = self.label[both.slices].copy(), self.inst[both.slices].copy()
        labels[hole.inside(both)], ids[hole.inside(both)] = label, inst
        at = box.inside(both)
        labels[at][part] = self.label[old.slices][_offset(box, old, dy, dx)][part]
        ids[at][part] = chosen.instance
        edit = {"tool": "move", "instance": chosen.instance, "dy": dy, "dx": dx}
        return self._commit(edit, both, labels, ids)

    def delete(self, instance: int) -> bool:
        """Take an instance away; its surroundings fill the hole."""
        chosen = self.selection(instance)
        box, label, inst = self._without(chosen.mask, box_of(chosen.mask))
        return self._commit({"tool": "delete", "instance": chosen.instance}, box, label, inst)

    def reset(self) -> bool:
        """Go back to the scene as it was opened. This, too, can be undone."""
        label, inst, features = self._first
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

    # -- pictures ----------------------------------------------------------------------------

    def picture(self) -> np.ndarray:
        """The photograph of the scene, (H, W, 3) uint8; drawn again only after a change."""
        if self._picture is None:
            self._picture = self._draw(self._x)[0]
            self.drawn += 1
        return self._picture

    def label_picture(self) -> np.ndarray:
        """The label map in its classes' colours, (H, W, 3) uint8."""
        label = torch.from_numpy(self.label)[None]
        return label_picture(label, self._opt.label_nc, self._opt.ignore_label)

    def previews(self, instance: int, features: np.ndarray) -> np.ndarray:
        """The photograph with an instance in other looks: (K, feat_num) -> (K, H, W, 3) uint8.

        All are drawn in one batch.
        """
        region = self._region(self.selection(instance))
        where = self._window(self.regions == region, self._whole)
        x = self._x.repeat(len(features), 1, 1, 1)  # (K, C, H, W), padded
        looks = torch.from_numpy(np.array(features, np.float32)).to(x)[:, :, None, None]
        x[:, -self._opt.feat_num :] = torch.where(where, looks, x[:, -self._opt.feat_num :])
        return self._draw(x)

    def photo_feature(
        self, photo: np.ndarray, y: int, x: int, inst: np.ndarray | None = None
    ) -> np.ndarray:
        """The look of what a photograph shows at a pixel, (feat_num,) float32, by the encoder.

        photo (H, W, 3) uint8; inst (H, W) its instances, else a disc around the pixel counts as
        one, its radius a sixteenth of the height.
        """
        height, width = photo.shape[:2]
        y, x = _integer(y, "y", 0, height - 1), _integer(x, "x", 0, width - 1)
        if inst is None:
            box, disc = stroke([(y, x)], max(1, height // 16), (height, width))
            inst = np.zeros((height, width), np.int32)
            inst[box.slices] = disc
        return self._encode(photo, inst == inst[y, x])[:, y, x]

    def photo_features(self, photo: np.ndarray) -> dict[int, np.ndarray]:
        """The look of every region of the scene as it was opened, from its photograph.

        photo (H, W, 3) uint8, of the scene's size. For set_styles.
        """
        label, inst, _ = self._first
        regions = label if self._opt.label_feat else inst
        features = self._encode(photo, regions)
        ids, first = np.unique(regions, return_index=True)
        vectors = features.reshape(len(features), -1)[:, first].T
        return dict(zip(ids.tolist(), vectors))

    def _draw(self, x: Tensor) -> np.ndarray:
        height, width = self.shape
        with self._lock:
            return to_pictures(self.networks.draw(x)[..., :height, :width])

    def _encode(self, photo: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """(feat_num, H, W)"""
        image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        ids = torch.from_numpy(regions.astype(np.int32))[None, None]
        with self._lock:
            return self.networks.encode(image, ids)[0].cpu().numpy()

    # -- the tensors of a scene --------------------------------------------------------------

    def _allocate(self) -> None:
        label, inst = (torch.from_numpy(m)[None, None] for m in (self.label, self.inst))
        feat = None
        if self.has_features:
            feat = torch.from_numpy(paint(self.regions, self.features, self._opt.feat_num))[None]
        with torch.no_grad():
            self._x = self.networks.generator_input(label, inst, feat)  # (1, C, padded H, W)
        self._whole = Box(0, self._x.shape[2], 0, self._x.shape[3])
        self._picture: np.ndarray | None = None

    def _refresh_maps(self, box: Box) -> None:
        """Rebuild one-hot labels inside a box, and edges there and one pixel around it."""
        classes = self._opt.label_nc
        label = self._window(self.label, box)
        self._x[(..., slice(classes), *box.slices)] = one_hot(
            label, classes, self._opt.ignore_label
        ).to(self._x.dtype)
        if self.has_instances:
            inner = box.grown(1).clipped(self._whole.shape)
            outer = box.grown(2).clipped(self._whole.shape)  # an edge depends on its neighbours
            border = edges(self._window(self.inst, outer))[(..., *inner.inside(outer))]
            self._x[(..., slice(classes, classes + 1), *inner.slices)] = border.to(self._x.dtype)
        self._picture = None

    def _refresh_features(self, box: Box) -> None:
        """Rebuild the features inside a box."""
        if self.has_features:
            regions = self._window(self.regions, box)[0, 0].cpu().numpy()
            values = torch.from_numpy(paint(regions, self.features, self._opt.feat_num))
            self._x[(0, slice(-self._opt.feat_num, None), *box.slices)] = values.to(self._x)
        self._picture = None

    def _window(self, array: np.ndarray, box: Box) -> Tensor:
        """A box of (H, W), which may reach into the padding -> (1, 1, h, w) on the device."""
        rows = np.arange(box.top, box.bottom).clip(max=self.shape[0] - 1)
        columns = np.arange(box.left, box.right).clip(max=self.shape[1] - 1)
        return torch.from_numpy(array[np.ix_(rows, columns)])[None, None].to(self.networks.device)

    def _padded(self, box: Box) -> Box:
        """The box, and the padding that repeats its pixels at the lower and right border."""
        height, width = self.shape
        bottom = self._whole.bottom if box.bottom == height else box.bottom
        right = self._whole.right if box.right == width else box.right
        return Box(box.top, bottom, box.left, right)

    # -- changes -----------------------------------------------------------------------------

    def _commit(
        self,
        edit: dict,
        box: Box | None = None,
        label: np.ndarray | None = None,
        inst: np.ndarray | None = None,
        features: Mapping[int, np.ndarray | None] | None = None,
    ) -> bool:
        """Carry out and write down an edit: new contents of a box, new features of regions."""
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
            content = zlib.decompress(change.maps)
            pixels = label.size * label.itemsize
            label[:] = np.frombuffer(content[:pixels], label.dtype).reshape(label.shape)
            inst[:] = np.frombuffer(content[pixels:], inst.dtype).reshape(inst.shape)
        for i, vector in change.features.items():
            if vector is None:
                self.features.pop(i, None)
            else:
                self.features[i] = vector
        self._refresh(box, list(change.features))
        return before

    def _refresh(self, box: Box | None, regions: list[int]) -> None:
        """Rebuild what depends on a box of the maps and on the features of regions."""
        if box is not None:
            self._refresh_maps(self._padded(box))
        if regions:
            changed = box_of(np.isin(self.regions, regions))
            if changed is not None:
                box = changed if box is None else box.union(changed)
        if box is not None:
            self._refresh_features(self._padded(box))

    def _packed(self, label: np.ndarray, inst: np.ndarray) -> bytes:
        content = label.astype(self.label.dtype).tobytes() + inst.astype(np.int32).tobytes()
        return zlib.compress(content, 1)

    def _stamped(
        self, box: Box, mask: np.ndarray, label: int, inst: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The contents of a box with a class and an instance where mask is true."""
        labels, ids = self.label[box.slices].copy(), self.inst[box.slices].copy()
        labels[mask], ids[mask] = label, inst
        return labels, ids

    def _without(self, mask: np.ndarray, box: Box) -> tuple[Box, np.ndarray, np.ndarray]:
        """A box and its contents when an object is gone and the nearest pixels fill the hole.

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
        raise UserError("the object is all that the scene holds: nothing could fill its place")

    # -- ids, classes, features --------------------------------------------------------------

    def _class_of(self, mask: np.ndarray) -> int:
        """The class that most of a mask's pixels have."""
        values, counts = np.unique(self.label[mask], return_counts=True)
        return int(values[counts.argmax()])

    def _region(self, chosen: Selection) -> int:
        return chosen.label if self._opt.label_feat else chosen.instance

    def _find_things(self) -> set[int]:
        """The classes whose objects are told apart: Cityscapes' own, else those that the scene
        numbers with ids other than the class."""
        if self._opt.label_nc == 35:
            return set(_CITYSCAPES_THINGS)
        if not self.has_instances:
            return set()
        return set(np.unique(self.label[self.inst != self.label]).tolist())

    def _id_for(self, label: int) -> int:
        """The id for new pixels of a class: a fresh one for a thing, the class's own for stuff."""
        own = self.inst == label
        taken = own.any() and self._class_of(own) != label
        return self._fresh_id(label) if label in self._things or taken else label

    def _fresh_id(self, label: int) -> int:
        """An id that the scene does not use: class * 1000 + n if one of these is left."""
        free = np.bincount(self.inst.ravel(), minlength=_LARGEST_ID + 1) == 0
        own = free[max(1, label) * 1000 : (max(1, label) + 1) * 1000]
        if own.any():
            return max(1, label) * 1000 + int(own.argmax())
        if not free[1000:].any():
            raise UserError("the scene uses every instance id up to 65535: delete some objects")
        return 1000 + int(free[1000:].argmax())

    def _look(
        self, inst: int, label: int, vector: np.ndarray | None = None
    ) -> dict[int, np.ndarray | None]:
        """The feature of a region that begins here; one that is there keeps its own."""
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

    def _check_maps(self, label: np.ndarray, inst: np.ndarray | None) -> None:
        if label.ndim != 2 or label.dtype.kind not in "iu" or not label.size:
            raise UserError(f"a label map of {label.dtype} {label.shape}: expected integers (H, W)")
        known = label[label != self._opt.ignore_label]
        if known.size and not 0 <= known.min() <= known.max() < self._opt.label_nc:
            raise UserError(
                f"labels {known.min()} to {known.max()}, but the model knows 0 to "
                f"{self._opt.label_nc - 1}"
            )
        if not self.has_instances:
            return
        if inst is None:
            raise UserError("no instance map: this model was trained with one for every label map")
        if inst.shape != label.shape or inst.dtype.kind not in "iu":
            raise UserError(
                f"an instance map of {inst.dtype} {inst.shape} beside a label map of {label.shape}"
            )
        if inst.min() < 0 or inst.max() > _LARGEST_ID:
            raise UserError(f"instance ids {inst.min()} to {inst.max()}: expected 0 to 65535")

    def _known_class(self, label: object) -> int:
        return _integer(label, "label", 0, self._opt.label_nc - 1)

    def _vector(self, feature: Sequence[float]) -> np.ndarray:
        """A feature from outside as (feat_num,) float32."""
        if not self.has_features:
            raise UserError("this model has no styles: it was trained without --instance_feat")
        try:
            vector = np.array(feature, np.float32)
        except (TypeError, ValueError):
            vector = np.zeros(0)
        if vector.shape != (self._opt.feat_num,) or not np.isfinite(vector).all():
            raise UserError(
                f"feature: expected {self._opt.feat_num} numbers, found {feature!r:.60}"
            )
        return vector

    def _given(self, feature: Sequence[float] | None) -> np.ndarray | None:
        """An optional feature; models without features pass it over."""
        return self._vector(feature) if feature is not None and self.has_features else None

    def _points(self, points: object) -> list[Point]:
        if not isinstance(points, Sequence) or not 1 <= len(points) <= MOST_POINTS:
            raise UserError(f"points: expected 1 to {MOST_POINTS} of (y, x), found {points!r:.40}")
        far = 2 * max(self.shape)
        path = []
        for point in points:
            if not isinstance(point, Sequence) or len(point) != 2:
                raise UserError(f"points: expected (y, x), found {point!r:.40}")
            path.append(tuple(_number(v, "a point of the stroke", -far, far) for v in point))
        return path

    def _shape_mask(self, shape: object) -> np.ndarray:
        """The rows of add() as (h, w) bool."""
        rows = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else []
        text = [row for row in rows if isinstance(row, str) and row and set(row) <= {"#", "."}]
        even = len({len(row) for row in text}) == 1 and len(text) == len(rows)
        if not even or not any("#" in row for row in text) or max(len(rows), len(rows[0])) > 8192:
            raise UserError("shape: expected rows of one length, '#' where the object is, else '.'")
        return np.array([[sign == "#" for sign in row] for row in rows])


EDITS = ("set_style", "set_styles", "set_class", "paint", "add", "move", "delete", "reset")


def shape_rows(mask: np.ndarray) -> list[str]:
    """A mask (h, w) bool as the rows that UIModel.add takes."""
    return ["".join(row) for row in np.where(mask, "#", ".").tolist()]


def _with_look(edit: dict, look: Mapping[int, np.ndarray | None]) -> dict:
    """The edit with the look that was chosen for what it makes: apply() then needs no styles."""
    vectors = [vector for vector in look.values() if vector is not None]
    return {**edit, "feature": vectors[0].tolist()} if vectors else edit


def _offset(box: Box, old: Box, dy: int, dx: int) -> tuple[slice, slice]:
    """Where the pixels of box were inside old before they were shifted by (dy, dx)."""
    return box.shifted(-dy, -dx).inside(old)


def _equal(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _integer(value: object, what: str, low: int, high: int) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise UserError(f"{what}: expected an integer from {low} to {high}, found {value!r:.40}")
    return int(value)


def _number(value: object, what: str, low: float, high: float) -> float:
    real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not low <= value <= high:
        raise UserError(f"{what}: expected a number from {low} to {high:g}, found {value!r:.40}")
    return float(value)


def _id(key: object) -> int:
    try:
        return int(key)
    except (TypeError, ValueError) as error:
        raise UserError(f"features: expected region ids, found {key!r:.40}") from error

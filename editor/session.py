"""One user's session: a scene, a tool, a selection, and the message after each action.

It does not depend on the page; every action returns one line for the status, or raises UserError.
"""

import base64
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from editor.library import LibraryObject
from editor.record import download
from editor.scenes import Scenes
from models.masks import Point, box_of
from models.scene import Selection, shape_rows
from models.styles import get_style
from models.ui_model import UIModel
from util.errors import UserError
from util.pages.colours import class_name

HINTS = {
    "Select": "Click an object, in either image; then choose one of its styles below.",
    "Paint": "Choose a class below, then draw in either image.",
    "Change class": "Click an object, then its new class.",
    "Add": "Choose an object below, then click where to put it.",
    "Move": "Drag an object to its new place.",
    "Delete": "Click an object: it is removed, and the background around it fills the gap.",
}
PREVIEW_WIDTH = 320  # pixels; the page shows previews 132 wide
NEEDS_CLASS = ("Paint", "Change class")
KEPT = 8  # edited scenes that are kept while others are open; the oldest is dropped
DOWNLOADS = {
    "photograph": "photograph",
    "label": "label map",
    "inst": "instance map",
    "edits": "edit list",
}
TITLES = {
    "set_style": "a style",
    "set_styles": "the styles of the photograph",
    "set_class": "a change of class",
    "paint": "a brush stroke",
    "add": "an added object",
    "move": "a move",
    "delete": "a deletion",
    "reset": "a reset",
}


@dataclass
class Session:
    """What one user sees and has chosen. lock: hold it during an action, including generation."""

    ui: UIModel
    scenes: Scenes
    objects: list[LibraryObject]
    lock: threading.RLock = field(default_factory=threading.RLock)
    tool: str = "Select"
    label: int = 0
    radius: float = 3.0
    scale: float = 1.0
    object: int | None = None
    scene: str | None = None  # the open one
    uploads: int = 0  # uploaded maps so far, which are scenes as well
    edited: dict[str, UIModel] = field(default_factory=dict)  # scenes left with edits, by name
    selected: Selection | None = None
    gallery: list[np.ndarray] | None = None  # images of the selected object in its class's styles
    photo: np.ndarray | None = None  # to take styles from, (H, W, 3) uint8
    photo_inst: np.ndarray | None = None
    photo_of: str | None = None  # the scene whose photograph it is; None: an uploaded one
    turn: int = 0  # number of responses sent to the page
    status: str = ""  # the status line that was last sent to the page
    shown: dict[object, object] = field(default_factory=dict)  # what the page shows, by part
    file: dict[str, str] | None = None  # to be downloaded: its name, type and content in base64
    _generating: tuple[Selection, int] | None = None  # gallery in progress: of whom, which version
    copying: bool = False  # the next click selects the object whose class and style are copied

    @property
    def is_open(self) -> bool:
        return hasattr(self.ui, "label")

    def name_of(self, label: int) -> str:
        return class_name(label, self.ui.networks.opt.label_nc)

    def name_of_selected(self) -> str:
        return self._name(self.selected)

    def name_of_styled(self) -> str:
        """What a style for the selected object applies to: with --label_feat its whole class."""
        if self.ui.styles_by_instance:
            return self.name_of_selected()
        return f"every {self.name_of(self.selected.label)}"

    def _name(self, one: Selection) -> str:
        numbered = one.instance != one.label and self.ui.has_instances
        return self.name_of(one.label) + (f" {one.instance}" if numbered else "")

    # -- scenes ------------------------------------------------------------------------------

    def begin(self) -> str:
        """For a page that has just loaded, perhaps again: it shows nothing of the session yet."""
        self.shown.clear()
        self.choose_tool("Select")
        if self.is_open:
            self._reselect()  # previews in progress would go to the page that is gone
            return "Opened your scenes again, as you left them."
        return self.open_scene(self.scenes.names[0]) if self.scenes.names else self.scenes.missing

    @property
    def choices(self) -> list[str]:
        """The scenes that can be opened: the data set's, and uploads that are open or edited."""
        here = [*self.edited, *([self.scene] if self.is_open else [])]
        return [*self.scenes.names, *(name for name in here if name not in self.scenes.names)]

    def open_scene(self, name: str | None) -> str:
        if name in (None, self.scene):  # the list was left without a choice
            return ""
        if name in self.edited:
            self._show(self.edited.pop(name), name)
            return f"Opened the scene {name} again, as you left it."
        label, inst, stem = self.scenes.load(name)
        self._show(self._opened(label, inst, stem), name)
        return f"Opened the scene {name}, {self._size()}."

    def open_upload(self, label_path: str | None, inst_path: str | None) -> str:
        if label_path is None:
            raise UserError("choose a label map first")
        maps = self.scenes.uploaded_maps(Path(label_path), Path(inst_path) if inst_path else None)
        opened = self._opened(*maps)
        self.uploads += 1
        self._show(opened, f"your maps {self.uploads}: {maps[2]}")
        return f"Opened your maps {maps[2]}, {self._size()}."

    def _opened(self, label: np.ndarray, inst: np.ndarray | None, name: str) -> UIModel:
        fresh = self.ui.another()  # the old scene stays if this one is refused
        fresh.open(label, inst, name)
        return fresh

    def _show(self, ui: UIModel, scene: str) -> None:
        if self.is_open and self.ui.edits:
            self.edited[self.scene] = self.ui
            if len(self.edited) > KEPT:
                del self.edited[next(iter(self.edited))]
        self.ui, self.scene = ui, scene
        if not self.label:  # nothing chosen yet, and class 0 is rarely painted
            known = ui.label[ui.label != ui.networks.opt.ignore_label]
            self.label = int(np.bincount(known).argmax()) if known.size else 0
        self._select(None)

    def _size(self) -> str:
        height, width = self.ui.shape
        return f"{width}x{height}"

    # -- tools -------------------------------------------------------------------------------

    def choose_tool(self, tool: str) -> str:
        if tool not in HINTS:
            raise UserError(f"tool {tool!r}: expected one of {', '.join(HINTS)}")
        self.tool, self.copying = tool, False
        self.status = ""  # which may have refused what another tool was asked to do
        return ""

    def choose_label(self, label: int) -> str:
        """A click on the palette: the class to paint with, or for the selected object."""
        if not 0 <= label < self.ui.networks.opt.label_nc:
            raise UserError(f"class {label}: the model does not have it")
        if self.tool == "Change class" and self.selected is None:
            raise UserError("click an object first, then its new class")
        self.label = label
        if self.tool != "Change class":
            return f"Painting {self.name_of(label)}."
        return self._change_class(label=label)

    def choose_object(self, number: int) -> str:
        if not 0 <= number < len(self.objects):
            raise UserError(f"object {number}: the library does not have it")
        self.object = number
        return f"Click where to put the {self.name_of(self.objects[number].label)}."

    def start_copying(self) -> str:
        if self.selected is None:
            raise UserError("click an object first, then the one to copy class and style from")
        self.copying = True
        return f"Click the object whose class and style {self.name_of_selected()} should get."

    def pointer(self, drawn: tuple[str | None, list[Point]], radius: float, scale: float) -> str:
        """What the pointer drew on an image: the scene that the page showed, if known, and points
        (y, x) in pixels; a click is a single point."""
        self._needs_scene()
        scene, points = drawn
        if scene not in (None, self.scene):  # it was drawn while another was being opened
            raise UserError(f"the scene {scene} is no longer open; nothing was changed")
        self.radius, self.scale = radius, scale
        return {
            "Select": self._click,
            "Paint": self._paint,
            "Change class": self._click_to_change,
            "Add": self._add,
            "Move": self._move,
            "Delete": self._delete,
        }[self.tool](points)

    def _needs_scene(self) -> None:
        if not self.is_open:
            raise UserError("open a scene first")

    def _at(self, point: Point) -> Selection:
        return self.ui.select(*pixel(point, self.ui.shape))

    def _select(self, selection: Selection | None) -> None:
        self.selected, self.gallery, self.copying = selection, None, False

    def _click(self, points: list[Point]) -> str:
        self._select(self._at(points[-1]))
        return f"Selected {self.name_of_selected()}."

    def _click_to_change(self, points: list[Point]) -> str:
        if self.copying:
            return self._change_class(like=self._at(points[-1]).instance)
        return self._click(points)

    def _change_class(self, **target: int) -> str:
        old, before = self.name_of_selected(), self.selected.label
        where = np.argwhere(self.selected.mask)[0]
        changed = self.ui.set_class(self.selected.instance, **target)
        self._select(self.ui.select(*map(int, where)))
        if not changed:
            return "Nothing to change."
        if before == self.selected.label and self.ui.styles_by_instance:
            return f"{old} now has the style of the other object."
        return f"{old} became {self.name_of_selected()}."

    def _paint(self, points: list[Point]) -> str:
        changed = self.ui.paint([list(point) for point in points], self.label, self.radius)
        self._select(None)
        name = self.name_of(self.label)
        return f"Painted {name}." if changed else f"{name} was there already."

    def _add(self, points: list[Point]) -> str:
        if self.object is None:
            raise UserError("choose an object below first")
        one = self.objects[self.object]
        y, x = points[-1]
        feature = None if one.feature is None else one.feature.tolist()
        before, old = set(np.unique(self.ui.inst).tolist()), np.array(self.ui.label)
        self.ui.add(shape_rows(one.mask), one.label, y, x, self.scale, feature)
        new = set(np.unique(self.ui.inst).tolist()) - before  # none if stuff joins the same stuff
        placed = np.argwhere(self.ui.label != old)  # need not contain the point
        point = placed[0].tolist() if len(placed) else points[-1]
        self._select(self.ui.selection(new.pop()) if new else self._at(point))
        return f"Added a {self.name_of(one.label)}."

    def _move(self, points: list[Point]) -> str:
        (y0, x0), (y1, x1) = points[0], points[-1]
        chosen = self._at(points[0])
        changed = self.ui.move(chosen.instance, round(y1 - y0), round(x1 - x0))
        self._select(self.ui.selection(chosen.instance))
        name = self.name_of_selected()
        return f"Moved {name}." if changed else f"Selected {name}: drag it to its new place."

    def _delete(self, points: list[Point]) -> str:
        chosen = self._at(points[-1])
        self.ui.delete(chosen.instance)
        self._select(None)
        return f"Deleted {self._name(chosen)}."

    # -- styles ------------------------------------------------------------------------------

    @property
    def has_styles(self) -> bool:
        known = self.selected is not None and self.ui.has_features
        return known and self.selected.label in self.ui.styles

    @property
    def wants_gallery(self) -> bool:
        """Whether previews of the selected object's styles have yet to be generated."""
        return self.gallery is None and self.has_styles

    def generate_gallery(self) -> bool:
        """Generate cut-outs of the selected object in every style of its class, if they are wanted.
        Actions may run between two of them; returns False if one has made them out of date."""
        with self.lock:
            wanted = self.selected, self.ui.version
            if not self.wants_gallery or wanted == self._generating:
                return False
            self._generating = wanted
            styles, box = self.ui.styles[self.selected.label], surroundings(self.selected.mask)
        previews = []
        try:
            for vector in styles:
                with self.lock:
                    if wanted != (self.selected, self.ui.version):
                        return False
                    (preview,) = self.ui.previews(wanted[0].instance, vector[None])
                previews.append(thumbnail(preview[box]))
                time.sleep(0.005)  # else this thread takes the lock again before one that waits
            with self.lock:
                if wanted != (self.selected, self.ui.version):
                    return False
                self.gallery = previews
            return True
        finally:
            if self._generating == wanted:
                self._generating = None

    def chosen_style(self) -> int | None:
        """The number of the style that the selected object has, if it is one of its class's."""
        own = self.ui.feature(self.selected.instance)
        styles = enumerate(self.ui.styles[self.selected.label])
        return next((number for number, style in styles if np.array_equal(own, style)), None)

    def choose_style(self, number: int, whole_class: bool) -> str:
        if not self.has_styles:
            raise UserError("click an object that has styles first")
        name = self.name_of_styled()
        vector = get_style(self.ui.styles, self.selected.label, number, name)
        self.ui.set_style(self.selected.instance, vector, whole_class)
        if whole_class:
            self.gallery = None  # its previews show other objects as well
        who = f"every {self.name_of(self.selected.label)}" if whole_class else name
        return f"{who} now has style {number}."

    def open_photo(self, name: str | None) -> str:
        if name in (None, self.photo_of):  # the list was left without a choice
            return ""
        photo, (_, inst, _) = self.scenes.photo(name), self.scenes.load(name)
        self.photo, self.photo_inst, self.photo_of = photo, inst, name
        return f"Click in the photograph of {name}: {self._target()} gets the style at that place."

    def upload_photo(self, path: str) -> str:
        self.photo, self.photo_inst = self.scenes.uploaded_photo(Path(path)), None
        self.photo_of = None
        return f"Click in your photograph: {self._target()} gets the style at that place."

    def _target(self) -> str:
        return "the selected object" if self.selected is None else self.name_of_styled()

    def take_style(self, points: list[Point]) -> str:
        """A click on the photograph: give its style at that place to the selected object."""
        if self.selected is None:
            raise UserError("select an object in the scene first, then click in the photograph")
        if self.photo is None:
            raise UserError("choose a photograph first")
        y, x = pixel(points[0], self.photo.shape[:2])
        feature = self.ui.photo_feature(self.photo, y, x, self.photo_inst)
        self.ui.set_style(self.selected.instance, feature)
        return f"{self.name_of_styled()} now has the photograph's style at that place."

    def take_all_styles(self) -> str:
        self._needs_scene()
        if self.scene not in self.scenes.photos:
            raise UserError("this scene has no photograph")
        photo = self.scenes.photo(self.scene)
        if not self.ui.set_styles(self.ui.photo_features(photo)):
            return "The objects have these styles already."
        self.gallery = None  # its previews show other objects as well
        return "Every object now has its style from the photograph."

    def refresh(self) -> str:
        """Send the whole page again: it may have missed a response."""
        self.shown.clear()
        return ""

    # -- downloads, undo ---------------------------------------------------------------------

    def save(self, kind: str) -> str:
        """Have the page download one of DOWNLOADS."""
        self._needs_scene()
        name, media, content = download(self.ui, kind)
        self.file = {"name": name, "type": media, "content": base64.b64encode(content).decode()}
        return f"Saved {name}."

    def undo(self) -> str:
        return self._stepped(self.ui.undo, "Undid", "Nothing to undo.")

    def redo(self) -> str:
        return self._stepped(self.ui.redo, "Redid", "Nothing to redo.")

    def reset(self) -> str:
        self._needs_scene()
        changed = self.ui.reset()
        self._reselect()
        return "The scene is as it was opened." if changed else "There was nothing to reset."

    def _stepped(self, step: Callable[[], dict | None], done: str, nothing: str) -> str:
        self._needs_scene()
        edit = step()
        if edit is None:
            return nothing
        self._reselect()
        return f"{done}: {TITLES[edit['tool']]}."

    def _reselect(self) -> None:
        """Keep the selection if its instance is still there."""
        instance = None if self.selected is None else self.selected.instance
        there = instance is not None and (self.ui.inst == instance).any()
        self._select(self.ui.selection(instance) if there else None)


def pixel(point: Point, shape: tuple[int, int]) -> tuple[int, int]:
    """The pixel (y, x) at a point, the nearest one of the image (height, width) if outside."""
    y, x = (min(max(math.floor(v + 0.5), 0), side - 1) for v, side in zip(point, shape))
    return y, x


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8, scaled down to at most PREVIEW_WIDTH, which is enough for a preview."""
    image = Image.fromarray(picture)
    image.thumbnail((PREVIEW_WIDTH, PREVIEW_WIDTH), Image.Resampling.LANCZOS)
    return np.array(image)  # a copy, so that the whole image can be freed


def surroundings(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a cut-out around a mask (H, W), with a ratio of 2:1 if it fits."""
    box = box_of(mask)
    high, wide = (span.stop - span.start for span in box)
    height = min(max(1.5 * high, 0.75 * wide, mask.shape[0] / 4), mask.shape[0])
    lengths = round(height), round(min(2 * height, mask.shape[1]))
    starts = (
        min(max(round((span.start + span.stop - length) / 2), 0), limit - length)
        for span, length, limit in zip(box, lengths, mask.shape)
    )
    return tuple(slice(start, start + length) for start, length in zip(starts, lengths))

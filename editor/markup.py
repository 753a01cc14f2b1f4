"""The page's parts as HTML, from a session. Text from users' files is escaped."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from editor.session import HINTS, Session
from models.masks import outline
from models.scene import CITYSCAPES_THINGS
from util.pages.colours import palette


def data_uri(image: np.ndarray) -> str:
    """(H, W, 3 or 4) uint8 as a PNG in a data URL: no file to serve or to delete."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def stage(session: Session, urls: tuple[str, str]) -> str:
    """The photograph and the label map (URLs) side by side, the selection outlined."""
    if not session.is_open:
        text = "No scene is open. Choose one above, or open your own maps."
        return f'<div data-turn="{session.turn}">{note(text)}</div>'
    height, width = session.ui.shape
    border = [] if session.selected is None else outline(session.selected.mask)
    selected = "".join(f"M{x0} {y0}L{x1} {y1}" for x0, y0, x1, y1 in border)  # an SVG path
    colour = "#ffffff"
    if session.tool == "Paint":
        colour = "#" + bytes(palette(session.ui.networks.opt.label_nc)[session.label]).hex()
    edited = "yes" if session.ui.edits or session.edited else "no"  # in this scene or another
    parts = zip(("photograph", "map"), ("Generated photograph", "Label map"), urls)
    return (
        f'<div class="pictures" data-turn="{session.turn}" data-tool="{session.tool}" '
        f'data-scene="{escape(str(session.scene))}" data-edited="{edited}" '
        f'data-width="{width}" data-height="{height}" style="--brush: {colour}">'
        + "".join(_image(*one, width, height, selected) for one in parts)
        + "</div>"
    )


def _image(kind: str, title: str, url: str, width: int, height: int, selected: str) -> str:
    size = f"max-width: calc(80vh * {width} / {height})"  # a tall image fits the window too
    return (
        f'<figure class="{kind}"><figcaption>{title}</figcaption><div class="canvas" '
        f'style="{size}">'
        f'<img src="{url}" alt="{title}" draggable="false">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        f'<path class="under" d="{selected}"></path><path class="over" d="{selected}"></path>'
        '<path class="live" d=""></path></svg></div></figure>'
    )


def status(text: str, error: bool) -> str:
    kind, role = ("error", "alert") if error else ("fine", "status")
    return f'<div class="status {kind}" role="{role}">{escape(text)}</div>'


def hint(session: Session) -> str:
    """What to do with the chosen tool."""
    text = HINTS[session.tool]
    if session.tool == "Select" and not session.ui.has_features:
        text = "Click an object, in either image."  # no styles to choose from
    return f'<div class="hint">{escape(text)}</div>'


def gallery(session: Session) -> str:
    """The styles of the selected object as buttons, or a note on why there are none."""
    if not session.ui.has_features:
        return note("This model has no styles: it was trained without features.")
    if session.selected is None:
        return note("Click an object to see its styles.")
    name = escape(session.name_of_styled())
    if not session.has_styles:
        kind = escape(session.name_of(session.selected.label))
        return note(f"{kind} has no styles: no instance of it was large enough for one.")
    title = f"Styles of {name}"
    if session.gallery is None:
        count = len(session.ui.styles[session.selected.label])
        return _tiles(title, ['<div class="style waiting"></div>'] * count, ' aria-busy="true"')
    chosen = session.chosen_style()
    tiles = []
    for k, preview in enumerate(session.gallery):
        image = f'<img src="{data_uri(preview)}" alt="style {k}"><span>{k}</span>'
        tiles.append(_tile("style", k, chosen, f"style {k}", image))
    return _tiles(title, tiles)


def classes(session: Session) -> str:
    """All classes as buttons in their colours, those of the scene first."""
    colours = ["#" + bytes(colour).hex() for colour in palette(session.ui.networks.opt.label_nc)]
    here = set(np.unique(session.ui.label).tolist()) if session.is_open else set()
    chosen = session.label
    if session.tool == "Change class":
        chosen = None if session.selected is None else session.selected.label
    tiles = {"In this scene": [], "Other classes": []}
    for label, colour in enumerate(colours):
        name = escape(session.name_of(label))
        content = f'<i style="background: {colour}"></i>{name}'
        group = tiles["In this scene" if label in here else "Other classes"]
        group.append(_tile("class", label, chosen, name, content))
    return "".join(_tiles(title, group) for title, group in tiles.items() if group)


def library(session: Session, thumbnails: list[str]) -> str:
    """The objects to add, by class, Cityscapes' things first. thumbnails: their images' URLs."""
    if not session.objects:
        name = escape(session.ui.networks.folder.name)
        return note(
            "There are no objects to add yet. Cut some from the training scenes with "
            f"<code>python -m editor.library --name {name}</code>, then restart the editor."
        )
    tiles: dict[int, list[str]] = {}
    for k, one in enumerate(session.objects):
        name = escape(session.name_of(one.label))
        image = f'<img src="{thumbnails[k]}" alt="{name} {k}">'
        group = tiles.setdefault(one.label, [])
        group.append(_tile("object", k, session.object, name, image))
    things = CITYSCAPES_THINGS if session.ui.networks.opt.label_nc == 35 else ()
    order = sorted(tiles, key=lambda label: (label not in things, label))
    groups = (_tiles(escape(session.name_of(label)), tiles[label]) for label in order)
    return f'<div class="shelf">{"".join(groups)}</div>'


def _tiles(title: str, tiles: list[str], attribute: str = "") -> str:
    parts = "".join(tiles)
    return f'<div class="title">{title}</div><div class="tiles"{attribute}>{parts}</div>'


def _tile(kind: str, number: int, chosen: int | None, title: str, content: str) -> str:
    pressed = "false"
    if number == chosen:
        kind, pressed = f"{kind} chosen", "true"
    return (
        f'<button class="{kind}" aria-pressed="{pressed}" data-number="{number}" title="{title}">'
        f"{content}</button>"
    )


def photo(session: Session) -> str:
    """The photograph to take a style from."""
    if session.photo is None:
        return note("Choose a scene's photograph or upload one, then click in it.")
    height, width = session.photo.shape[:2]
    size = f"max-width: min(640px, 80vh * {width} / {height})"
    return (
        f'<div class="canvas" data-width="{width}" data-height="{height}" style="{size}">'
        f'<img src="{data_uri(session.photo)}" alt="Photograph to take a style from" '
        'draggable="false"></div>'
    )


def note(text: str) -> str:
    return f'<div class="empty">{text}</div>'

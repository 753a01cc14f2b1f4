"""The page's parts as HTML, from a session. What comes from users' files is escaped."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from editor.session import Session
from models.masks import outline
from util.pages.colours import palette


def data_uri(picture: np.ndarray) -> str:
    """(H, W, 3 or 4) uint8 as a PNG inside an address: nothing to serve, nothing to clear away."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def stage(session: Session, pictures: tuple[str, str]) -> str:
    """The photograph and the label map (their addresses) side by side, the selection outlined."""
    if not session.is_open:
        return note("No scene is open. Choose one above, or open your own maps.")
    height, width = session.ui.shape
    selected = "" if session.selected is None else outline_path(session.selected.mask)
    colour = "#ffffff"
    if session.tool == "Paint":
        colour = "#" + bytes(palette(session.ui.networks.opt.label_nc)[session.label]).hex()
    parts = zip(("photograph", "map"), ("Generated photograph", "Label map"), pictures)
    return (
        f'<div class="pictures" data-turn="{session.turn}" data-tool="{session.tool}" '
        f'data-width="{width}" data-height="{height}" data-radius="{session.radius}" '
        f'style="--brush: {colour}">'
        + "".join(_picture(*one, width, height, selected) for one in parts)
        + "</div>"
    )


def _picture(kind: str, title: str, address: str, width: int, height: int, selected: str) -> str:
    return (
        f'<figure class="{kind}"><figcaption>{title}</figcaption><div class="canvas">'
        f'<img src="{address}" alt="{title}" draggable="false">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        f'<path class="under" d="{selected}"></path><path class="over" d="{selected}"></path>'
        '<path class="live" d=""></path></svg></div></figure>'
    )


def outline_path(mask: np.ndarray) -> str:
    """The border of a mask as an SVG path."""
    return "".join(f"M{x0} {y0}L{x1} {y1}" for x0, y0, x1, y1 in outline(mask))


def status(text: str, error: bool) -> str:
    kind, role = ("error", "alert") if error else ("fine", "status")
    return f'<div class="status {kind}" role="{role}">{escape(text)}</div>'


def hint(session: Session, hints: dict[str, str]) -> str:
    return f'<div class="hint">{escape(hints[session.tool])}</div>'


def gallery(session: Session) -> str:
    """The styles of the selected object as buttons, or what stands in their place."""
    if not session.ui.has_features:
        return note("This model has no styles: it was trained without --instance_feat.")
    if session.selected is None:
        return note("Click an object to see its styles.")
    name = escape(session.name_of_selected())
    if not session.has_styles:
        return note(f"{name} has no styles: no instance of its class was large enough for one.")
    title = f'<div class="title">Styles of {name}</div>'
    if session.gallery is None:
        count = len(session.ui.styles[session.selected.label])
        waiting = '<div class="style waiting"></div>' * count
        return f'{title}<div class="tiles" aria-busy="true">{waiting}</div>'
    chosen = session.chosen_style()
    tiles = "".join(
        f'<button class="style{" chosen" if k == chosen else ""}" data-number="{k}" '
        f'title="style {k}"><img src="{data_uri(picture)}" alt="style {k}">'
        f"<span>{k}</span></button>"
        for k, picture in enumerate(session.gallery.pictures)
    )
    return f'{title}<div class="tiles">{tiles}</div>'


def classes(session: Session) -> str:
    """All classes as buttons in their colours, those of the scene first."""
    colours = palette(session.ui.networks.opt.label_nc)
    here = set(np.unique(session.ui.label).tolist()) if session.is_open else set()
    every = range(len(colours))
    groups = (
        ("In this scene", [label for label in every if label in here]),
        ("Other classes", [label for label in every if label not in here]),
    )
    parts = []
    for title, labels in groups:
        buttons = "".join(
            f'<button class="class{" chosen" if label == session.label else ""}" '
            f'data-number="{label}"><i style="background: #{bytes(colours[label]).hex()}"></i>'
            f"{escape(session.name_of(label))}</button>"
            for label in labels
        )
        if buttons:
            parts.append(f'<div class="title">{title}</div><div class="tiles">{buttons}</div>')
    return "".join(parts)


def library(session: Session, thumbnails: list[str]) -> str:
    """The objects to add, by class. thumbnails: their images' addresses."""
    if not session.objects:
        name = escape(session.ui.networks.folder.name)
        return note(
            "There are no objects to add yet. Cut some from the training scenes with "
            f"<code>python -m editor.library --name {name}</code>, then start the editor again."
        )
    parts = []
    for label in sorted({one.label for one in session.objects}):
        buttons = "".join(
            f'<button class="object{" chosen" if k == session.object else ""}" data-number="{k}" '
            f'title="{escape(session.name_of(label))}"><img src="{thumbnails[k]}" '
            f'alt="{escape(session.name_of(label))} {k}"></button>'
            for k, one in enumerate(session.objects)
            if one.label == label
        )
        name = escape(session.name_of(label))
        parts.append(f'<div class="title">{name}</div><div class="tiles">{buttons}</div>')
    return f'<div class="shelf">{"".join(parts)}</div>'


def photo(session: Session) -> str:
    """The photograph to take a style from."""
    if session.photo is None:
        return note("Choose a scene's photograph, or upload one; then click in it.")
    height, width = session.photo.shape[:2]
    return (
        f'<div class="canvas" data-width="{width}" data-height="{height}">'
        f'<img src="{data_uri(session.photo)}" alt="Photograph to take a style from" '
        'draggable="false"></div>'
    )


def note(text: str) -> str:
    return f'<div class="empty">{text}</div>'

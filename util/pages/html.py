"""Pages of rows of images, to be opened straight from disk: test results, training progress."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from dominate import document, tags
from dominate.util import raw
from PIL import Image

from util.files import replacing

# System colours (Canvas, CanvasText, ...) follow the reader's light or dark theme by themselves.
_CSS = """
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: max-content; padding: 1.5rem clamp(0.75rem, 3vw, 2.5rem) 4rem;
  font: 15px/1.5 system-ui, sans-serif; background: Canvas; color: CanvasText; }
h1 { font-size: 1.4rem; font-weight: 600; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; font-weight: 600; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
p { margin: 0 0 0.5rem; opacity: 0.75; overflow-wrap: anywhere; }
section { margin-top: 1.25rem; padding-top: 1rem; overflow-x: auto;
  border-top: 1px solid color-mix(in srgb, CanvasText 15%, Canvas); }
.row { display: grid; gap: 0.75rem;
  grid-template-columns: repeat(var(--columns), minmax(0, var(--width))); }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px;
  background: color-mix(in srgb, CanvasText 8%, Canvas); }
img.enlarged { image-rendering: pixelated; }
figcaption { font-size: 0.8rem; opacity: 0.75; margin-top: 0.2rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 1rem 0.2rem 0; text-align: left; vertical-align: top; }
tbody th { font-weight: normal; }
td:nth-child(2):last-child { overflow-wrap: anywhere; }
.pinned { position: sticky; top: 0; padding: 0.5rem 0; background: Canvas; z-index: 1; }
.pinned input { width: 100%; }
@media (max-width: 600px) { .row { grid-template-columns: minmax(0, var(--width)); } }
"""


@dataclass(frozen=True)
class Picture:
    """An image on a page. Paths are relative to the page's folder; a click opens link.

    Without a link the click opens the image itself, at full size. data: its data-... attributes,
    for scripts.
    """

    path: str | Path
    caption: str = ""
    link: str | Path | None = None
    data: Mapping[str, str] = field(default_factory=dict)


class Page:
    """A page in a folder, index.html. Every file it refers to must exist when its row is added."""

    def __init__(
        self,
        folder: str | Path,
        title: str,
        *,
        refresh: int | None = None,
        name: str = "index.html",
    ) -> None:
        """refresh: seconds after which an open page loads itself anew; None for never."""
        self.folder = Path(folder)
        self.name = name
        self._document = document(title=title, lang="en")
        with self._document.head:
            tags.meta(charset="utf-8")
            tags.meta(name="viewport", content="width=device-width, initial-scale=1")
            if refresh is not None:
                tags.meta(http_equiv="refresh", content=str(refresh))
            tags.style(raw(_CSS))
        self._document.body.add(tags.h1(title))

    def header(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._document.body.add(tags.p(text))

    def add(self, *elements: tags.html_tag) -> None:
        """Add elements of HTML."""
        self._document.body.add(*elements)

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        """Add a table of plain text; the first column names the rows."""
        titles = tags.thead(tags.tr(*[tags.th(text) for text in head])) if head else ""
        body = [tags.tr(tags.th(row[0]), *[tags.td(text) for text in row[1:]]) for row in rows]
        self._document.body.add(tags.section(tags.table(titles, tags.tbody(*body))))

    def row(self, pictures: list[Picture], *, heading: str = "", width: int = 512) -> None:
        """Add images side by side, each shown width pixels wide, less where the window is."""
        columns = tags.div(
            *[self._figure(picture, width) for picture in pictures],
            cls="row",
            style=f"--columns: {len(pictures)}; --width: {width}px",
        )
        title = [tags.h2(heading)] if heading else []
        self._document.body.add(tags.section(*title, columns))

    def save(self) -> Path:
        """Write the page, whole or not at all, and return its path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / self.name
        with replacing(path) as temporary:
            # A file name that is not Unicode shows as '?'; its link is built from the bytes.
            text = self._document.render(pretty=False)
            temporary.write_text(text, encoding="utf-8", errors="replace")
        return path

    def _figure(self, picture: Picture, width: int) -> tags.figure:
        source = self._url(picture.path)
        with Image.open(self.folder / picture.path) as image:
            own_width, own_height = image.size
        # With the size known beforehand, unloaded images hold their place: lazy loading works
        # and a page that refreshes itself does not jump.
        shown = tags.img(
            src=source,
            alt=picture.caption,
            width=own_width,
            height=own_height,
            loading="lazy",
            **{f"data-{key}": value for key, value in picture.data.items()},
        )
        if own_width < width:
            shown["class"] = "enlarged"
        link = source if picture.link is None else self._url(picture.link)
        caption = [tags.figcaption(picture.caption)] if picture.caption else []
        return tags.figure(tags.a(shown, href=link), *caption)

    def _url(self, path: str | Path) -> str:
        """The path as a relative URL, any character of a file name allowed."""
        if not (self.folder / path).is_file():
            raise FileNotFoundError(
                f"{self.folder / path}: a page may only refer to existing files"
            )
        return quote(os.fsencode(Path(path).as_posix()))

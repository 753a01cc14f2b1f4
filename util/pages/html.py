"""Pages of rows of images, to be opened straight from disk: test results, training progress."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from dominate import document, tags
from dominate.util import raw
from PIL import Image

from util.files import replacing

_CSS = Path(__file__).with_name("page.css").read_text()


@dataclass(frozen=True)
class Picture:
    """An image on a page; a click opens it at full size. path: relative to the page's folder; data:
    its data-* attributes, for scripts."""

    path: str | Path
    caption: str = ""
    data: Mapping[str, str] = field(default_factory=dict)


class Page:
    """A page in a folder, index.html. Every file it refers to must exist when its row is added."""

    def __init__(
        self, folder: str | Path, title: str, *, refresh: int | None = None, name="index.html"
    ) -> None:
        """refresh: seconds after which an open page reloads itself; None for never."""
        self.folder, self.name = Path(folder), name
        self._document = document(title=title, lang="en")
        with self._document.head:
            tags.meta(charset="utf-8")
            tags.meta(name="viewport", content="width=device-width, initial-scale=1")
            if refresh is not None:
                tags.meta(http_equiv="refresh", content=str(refresh))
            tags.style(raw(_CSS))
        self.add(tags.h1(title))

    def paragraph(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self.add(tags.p(text))

    def add(self, *elements: tags.html_tag) -> None:
        """Add HTML elements."""
        self._document.body.add(*elements)

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        """Add a table of plain text; the first column names the rows."""
        titles = tags.thead(tags.tr(*[tags.th(text) for text in head])) if head else ""
        body = [tags.tr(tags.th(row[0]), *[tags.td(text) for text in row[1:]]) for row in rows]
        self.add(tags.section(tags.table(titles, tags.tbody(*body))))

    def row(self, pictures: list[Picture], *, heading: str = "", width: int = 512) -> None:
        """Add images side by side, each shown width pixels wide, or less in a narrow window."""
        style = f"--columns: {len(pictures)}; --width: {width}px"
        figures = [self._figure(picture, width) for picture in pictures]
        title = [tags.h2(heading)] if heading else []
        self.add(tags.section(*title, tags.div(*figures, cls="row", style=style)))

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
        # With a known size, images that are not loaded yet keep their place: lazy loading works
        # and a page that refreshes itself does not jump.
        size = {}
        file = self.folder / picture.path
        # a damaged file, for which Pillow has many errors, is shown as well as the browser can
        with suppress(Exception), Image.open(file) as image:
            size = {"width": image.width, "height": image.height}
        data = {f"data-{key}": value for key, value in picture.data.items()}
        name = picture.caption or Path(picture.path).stem
        shown = tags.img(src=source, alt=name, **size, loading="lazy", **data)
        if size and size["width"] < width:
            shown["class"] = "enlarged"
        caption = [tags.figcaption(picture.caption)] if picture.caption else []
        return tags.figure(tags.a(shown, href=source), *caption)

    def _url(self, path: str | Path) -> str:
        """The path as a relative URL; file names may contain any character."""
        if not (self.folder / path).is_file():
            problem = f"{self.folder / path}: a page may only refer to existing files"
            raise FileNotFoundError(problem)
        return quote(os.fsencode(Path(path).as_posix()))

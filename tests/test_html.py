"""Pages of images: links that work for any file name, no references to missing files."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from util.pages.colours import save_image
from util.pages.html import Page, Picture


class Reader(HTMLParser):
    """Collects a page's tags and its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def put(path: Path, width: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(np.zeros((4, width, 3), np.uint8), path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "plain.png",
        "a b.png",
        "a#1?.png",
        "50%25.png",
        "q\"u'o.png",
        "<b>&amp;.png",
        "Zürich:東.png",
    ],
)
def test_any_file_name_is_linked_and_shown(tmp_path, name):
    put(tmp_path / "images" / name)
    page = Page(tmp_path, f"title {name}")
    page.paragraph(f"paragraph {name}")
    page.row([Picture(f"images/{name}", f"caption {name}")], heading=f"heading {name}")
    read = Reader(page.save())
    (image,), (link,) = read.all("img"), read.all("a")
    assert image["src"] == link["href"]
    assert unquote(image["src"]) == f"images/{name}"
    assert not set(' #?"<>') & set(image["src"])
    assert image["alt"] == f"caption {name}"
    for place in ("title", "paragraph", "heading", "caption"):
        assert f"{place} {name}" in read.words


def test_images_are_lazy_and_keep_their_place(tmp_path):
    put(tmp_path / "small.png", width=8)
    put(tmp_path / "large.png", width=80)
    page = Page(tmp_path, "t")
    page.row([Picture("small.png"), Picture("large.png")], width=20)
    small, large = Reader(page.save()).all("img")
    assert (small["width"], small["height"], small["loading"]) == ("8", "4", "lazy")
    assert small["class"] == "enlarged" and "class" not in large
    assert [link["href"] for link in Reader(page.save()).all("a")] == ["small.png", "large.png"]


@pytest.mark.parametrize("width", [400, 1280])
def test_figures_next_to_a_long_text_stay_on_one_line(tmp_path, browser, width):
    page = Page(tmp_path, "evaluation")
    rows = [["LPIPS", "could not be downloaded " * 9, "", ""], ["x", "0.4725", "4.700e-03", "1"]]
    page.table(["", "images", "oracle", "ratio"], rows)
    shown = browser.new_page()
    shown.set_viewport_size({"width": width, "height": 900})
    shown.goto(page.save().as_uri())
    heights = shown.eval_on_selector_all("tr:last-child > *", "all => all.map(e => e.offsetHeight)")
    assert max(heights) < 40
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    shown.close()


def test_refresh_only_on_request(tmp_path):
    def refresh(page: Page) -> list[str]:
        return [m["content"] for m in Reader(page.save()).all("meta") if "http-equiv" in m]

    assert refresh(Page(tmp_path, "t")) == []
    assert refresh(Page(tmp_path, "t", refresh=30)) == ["30"]


def test_a_missing_file_is_an_error_and_writes_nothing(tmp_path):
    page = Page(tmp_path, "t")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        page.row([Picture("missing.png")])
    assert not (tmp_path / "index.html").exists()


def test_an_image_larger_than_pillow_reads_is_shown(tmp_path, monkeypatch):
    put(tmp_path / "huge.png")
    page = Page(tmp_path, "title")
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 4)
    page.row([Picture("huge.png")])
    (image,) = Reader(page.save()).all("img")
    assert image["src"] == "huge.png" and "width" not in image


PNG = b"\x89PNG\r\n\x1a\n"
SHORT_HEADER = PNG + b"\0\0\0\x0cIHDR" + bytes(20)


@pytest.mark.parametrize("content", [b"", PNG, SHORT_HEADER, b"noise" * 99])
def test_a_page_with_a_damaged_image_is_still_written(tmp_path, content):
    """test.py --skip_existing --page, say, after a power cut."""
    (tmp_path / "damaged.png").write_bytes(content)
    page = Page(tmp_path, "title")
    page.row([Picture("damaged.png")])
    (image,) = Reader(page.save()).all("img")
    assert image["src"] == "damaged.png" and "width" not in image

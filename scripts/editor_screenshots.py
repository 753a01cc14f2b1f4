"""Take the screenshots of docs/editor.md from a running editor.

    python -m scripts.editor_screenshots --name toy_local

Needs what edit.py needs, playwright, and chromium. Further flags go to edit.py.
"""

import argparse
import base64
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from scipy import ndimage

from util.errors import UserError, run

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
WIDE, NARROW = {"width": 1300, "height": 800}, {"width": 500, "height": 800}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="toy_local", help="the run to show")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--scene", default=None, help="the scene to show; default: the first")
    arguments, others = parser.parse_known_args()
    if (chromium := shutil.which("chromium")) is None:
        raise UserError("chromium is not installed: the screenshots are taken with it")
    command = [sys.executable, "-u", "edit.py", "--name", arguments.name, "--port", "0", *others]
    arguments.out.mkdir(parents=True, exist_ok=True)
    editor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        opened = next((line for line in editor.stdout if "open at " in line), None)
        if opened is None:
            raise UserError("edit.py did not start; its message is above")
        address = opened.split("open at ")[1].split()[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport=WIDE)
            page.goto(address)
            page.wait_for_selector(".pictures")
            show_all(page, arguments.out, arguments.scene)
            browser.close()
    finally:
        editor.terminate()
        editor.wait()


def show_all(page: Page, out: Path, scene: str | None) -> None:
    """Use each tool once and take a screenshot of it."""
    if scene:
        page.locator("#scene input").click()
        after(page, page.get_by_role("option", name=scene, exact=True).click)
    y, x = middle_of(page, (0, 0, 142))  # a car, by its class's colour

    after(page, lambda: page.mouse.click(*on_page(page, y, x)))
    styles = page.locator("#gallery button:not(.chosen)")
    styles.first.wait_for()
    after(page, styles.nth(styles.count() // 2).click)
    save(page, out / "editor.png")

    page.set_viewport_size(NARROW)
    save(page, out / "editor_narrow.png")
    page.set_viewport_size(WIDE)

    tool(page, "Paint")
    after(page, page.locator("#classes").get_by_role("button", name="vegetation", exact=True).click)
    start, end = on_page(page, 0.62, 0.04), on_page(page, 0.5, 0.14)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=8)
    save(page, out / "editor_paint.png")
    after(page, page.mouse.up)

    tool(page, "Change class")
    after(page, lambda: page.mouse.click(*on_page(page, y, x)))
    after(page, page.locator("#classes").get_by_role("button", name="bus", exact=True).click)
    save(page, out / "editor_class.png")
    after(page, page.get_by_role("button", name="Undo", exact=True).click)

    tool(page, "Add")
    objects = page.locator("#library button[title=person]")
    if objects.count():
        after(page, objects.first.click)
        after(page, lambda: page.mouse.click(*on_page(page, 0.78, 0.3)))
    save(page, out / "editor_add.png")


def tool(page: Page, name: str) -> None:
    after(page, page.locator("#tools").get_by_text(name, exact=True).click)


def after(page: Page, action) -> None:
    """Do something and wait until the page shows the response."""
    turn = page.locator(".pictures").get_attribute("data-turn")
    action()
    page.wait_for_function(
        "turn => document.querySelector('.pictures').dataset.turn != turn", arg=turn
    )


def on_page(page: Page, y: float, x: float) -> tuple[float, float]:
    """Where a point of the photograph, with coordinates from 0 to 1, is on the page."""
    box = page.locator("figure.photograph .canvas").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def middle_of(page: Page, colour: tuple[int, int, int]) -> tuple[float, float]:
    """The point, with coordinates from 0 to 1, that is deepest inside a colour of the label map."""
    address = page.locator("figure.map img").get_attribute("src")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))
    depth = ndimage.distance_transform_edt((image == colour).all(2))
    if not depth.any():
        raise UserError("the scene shows no car; choose another with --scene")
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return (y + 0.5) / depth.shape[0], (x + 0.5) / depth.shape[1]


def save(page: Page, path: Path) -> None:
    """Save the page as a PNG with 256 colours: small, and sharp as a page should be."""
    page.wait_for_function("() => !document.querySelector('.waiting')")
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    run(main)

"""The editor as users see it: its page in a browser, its server, its downloads."""

import base64
import io
import json
import os
import re
import signal
import struct
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, needs, one_line, run_command, run_ok
from PIL import Image

pytest.importorskip("playwright", reason="needs requirements-test.txt")

from editor_server import CAR, Client, running, write_project
from playwright.sync_api import Error, expect

from editor.scenes import Scenes
from models import create_model
from options.edit_options import EditOptions
from util.errors import UserError

pytestmark = needs("gradio", "requirements-ui.txt")
TRAIN, TRAIN_COLOUR = 31, (0, 80, 100)  # in no toy scene
SCENE = "toyville_000000_000019"
PAGE_SCRIPT = ROOT / "editor" / "page.js"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("editor")
    write_project(folder)
    return folder


@pytest.fixture(scope="module")
def url(project: Path):
    with running(project) as address:
        yield address


class Window:
    """A page of the editor, operated through what a user sees."""

    def __init__(self, browser, url: str) -> None:
        self.page = browser.new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector(".pictures")

    def turn(self) -> str:
        return self.page.locator(".pictures").get_attribute("data-turn")

    def after(self, action) -> None:
        """Do something and wait until the page has the answer."""
        turn = self.turn()
        action()
        self.page.wait_for_function(
            "turn => document.querySelector('.pictures').dataset.turn != turn", arg=turn
        )

    def until_idle(self) -> None:
        """Wait until the page has asked for nothing for a while."""
        asked = -1
        while asked != len(self.asked):
            asked = len(self.asked)
            self.page.wait_for_timeout(1500)

    def image(self, kind: str = "photograph") -> np.ndarray:
        """The photograph, or the label "map", (H, W, 3)."""
        address = self.page.locator(f"figure.{kind} img").get_attribute("src")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))

    def at(self, y: float, x: float, kind: str = "photograph") -> tuple[float, float]:
        """Where the pixel (y, x) of an image is on the page."""
        canvas = self.page.locator(f"figure.{kind} .canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        height, width = self.image(kind).shape[:2]
        return (
            box["x"] + (x + 0.5) * box["width"] / width,
            box["y"] + (y + 0.5) * box["height"] / height,
        )

    def click(self, y: float, x: float, kind: str = "photograph") -> None:
        place = self.at(y, x, kind)
        self.after(lambda: self.page.mouse.click(*place))

    def drag(self, *points: tuple[float, float], kind: str = "map") -> None:
        places = [self.at(y, x, kind) for y, x in points]

        def draw() -> None:
            self.page.mouse.move(*places[0])
            self.page.mouse.down()
            for place in places[1:]:
                self.page.mouse.move(*place, steps=3)
            self.page.mouse.up()

        self.after(draw)

    def tool(self, name: str) -> None:
        tool = self.page.locator("#tools").get_by_text(name, exact=True)
        self.after(tool.click)

    def press(self, name: str) -> None:
        self.after(self.page.get_by_role("button", name=name, exact=True).click)

    def choose_class(self, name: str) -> None:
        tile = self.page.locator("#classes").get_by_role("button", name=name, exact=True)
        self.after(tile.click)

    def says(self, pattern: str) -> str:
        """Wait until the status line matches a pattern (in part), and return it."""
        line = self.page.locator("#status .status")  # Gradio adds its own text next to it
        expect(line).to_have_text(re.compile(pattern), timeout=20_000)
        return line.inner_text()

    def save(self, name: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=name, exact=True).click()
        return Path(download.value.path()).read_bytes()

    def close(self) -> None:
        assert not self.errors
        self.page.close()


@pytest.fixture
def window(browser, url: str):
    window = Window(browser, url)
    yield window
    window.close()


def scene_maps(project: Path) -> tuple[np.ndarray, np.ndarray]:
    files = [
        next((project / "toy" / f"test_{kind}").glob(f"{SCENE}*")) for kind in ("label", "inst")
    ]
    return tuple(np.asarray(Image.open(path)).astype(int) for path in files)


def car(project: Path) -> tuple[int, int, int, np.ndarray]:
    """A car's id, a pixel well inside it, and its mask."""
    label, inst = scene_maps(project)
    ids, areas = np.unique(inst[label == CAR], return_counts=True)
    mask = inst == ids[areas.argmax()]
    ys, xs = np.nonzero(mask)
    nearest = ((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2).argmin()
    return int(ids[areas.argmax()]), int(ys[nearest]), int(xs[nearest]), mask


def far_from(mask: np.ndarray, pixels: int = 8) -> np.ndarray:
    near = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        near[max(0, y - pixels) : y + pixels + 1, max(0, x - pixels) : x + pixels + 1] = True
    return ~near


def test_another_style_changes_the_car_and_hardly_anything_else(window, project: Path) -> None:
    number, y, x, mask = car(project)
    before = window.image().astype(int)
    window.click(y, x)
    window.says(rf"^Selected car {number}\.$")
    outlined = window.page.locator("figure .over")
    expect(outlined).to_have_count(2)
    assert all(outlined.nth(k).get_attribute("d").startswith("M") for k in range(2))
    expect(window.page.locator("#gallery .style img")).to_have_count(5)
    other = window.page.locator("#gallery button:not(.chosen)").first
    window.after(other.click)
    window.says(r"^Car \d+ now has style \d\. Generated in \d+\.\d\d s\.$")
    change = np.abs(window.image().astype(int) - before).mean(2)
    assert change[mask].mean() > 10
    assert change[far_from(mask)].mean() < change[mask].mean() / 5
    window.press("Undo")
    assert np.array_equal(window.image(), before)


def test_paint_change_class_add_move_delete_and_undo_all(window, project: Path) -> None:
    number, y, x, mask = car(project)
    first = window.image(), window.image("map")
    sky, red_person, blue_car = (70, 130, 180), (220, 20, 60), (0, 0, 142)

    window.tool("Paint")
    window.choose_class("sky")
    window.drag((40, 10), (40, 30))
    assert (window.image("map")[40, 10:31] == sky).all()
    window.says(r"Painted sky\.")

    window.tool("Change class")
    window.choose_class("person")
    window.says(r"^click an object first, then its new class$")
    window.click(y, x, "map")
    window.choose_class("person")
    assert (window.image("map")[mask] == red_person).all()
    window.says(rf"^Car {number} became person 24\d\d\d\.")

    window.tool("Add")
    window.after(window.page.locator("#library button").first.click)
    window.click(10, 64)
    assert (window.image("map")[8:12, 60:68] == blue_car).all()

    window.tool("Move")
    window.drag((10, 64), (20, 100))
    assert (window.image("map")[18:22, 96:104] == blue_car).all()
    assert not (window.image("map")[8:12, 60:68] == blue_car).all(2).any()

    window.tool("Delete")
    window.click(20, 100)
    assert not (window.image("map")[18:22, 96:104] == blue_car).all(2).any()

    edited = window.image()
    for _ in range(5):
        window.press("Undo")
    expect(window.page.get_by_role("button", name="Undo", exact=True)).to_be_disabled()
    assert np.array_equal(window.image(), first[0])
    assert np.array_equal(window.image("map"), first[1])
    for _ in range(5):
        window.press("Redo")
    assert np.array_equal(window.image(), edited)
    window.press("Reset")
    assert np.array_equal(window.image(), first[0])


@pytest.mark.thorough
def test_keys_undo_and_redo_but_not_while_a_number_is_typed(window) -> None:
    keyboard = window.page.keyboard
    window.tool("Paint")
    window.choose_class("train")
    first = window.image("map")
    window.drag((32, 64), (32, 70))
    edited = window.image("map")
    window.page.locator("#radius input[type=number]").press("Control+z")
    for undo, redo in (("Control+z", "Control+Shift+Z"), ("Meta+z", "Control+y")):
        window.page.locator("#tools input:checked").focus()
        window.after(partial(keyboard.press, undo))
        assert np.array_equal(window.image("map"), first)
        window.after(partial(keyboard.press, undo))
        window.says(r"^Nothing to undo\.$")
        window.after(partial(keyboard.press, redo))
        assert np.array_equal(window.image("map"), edited)
    keyboard.down("Control")
    for _ in range(3):  # held
        keyboard.down("z")
    keyboard.up("Control")
    window.says(r"^Undid: a brush stroke\.")
    window.page.wait_for_timeout(300)
    window.says(r"^Undid: a brush stroke\.")


@pytest.mark.thorough
@pytest.mark.parametrize("waiting", [False, True], ids=["idle", "waiting"])
def test_who_stays_when_the_browser_asks_can_go_on(window, waiting: bool) -> None:
    """Also while the page waits for a response, which Gradio cuts off: a click then reloads it."""
    page = window.page
    window.tool("Paint")
    window.choose_class("train")
    window.drag((20, 40), (20, 60))
    window.until_idle()
    page.on("dialog", lambda dialog: dialog.dismiss())
    if waiting:
        page.route("**/queue/data*", lambda route: None)  # no response arrives
        with page.expect_request("**/queue/data*"):
            page.mouse.click(*window.at(30, 40, "map"))
    with pytest.raises(Error):  # the page is not reloaded
        page.reload(timeout=4000)
    page.unroute_all()
    page.wait_for_timeout(2000)  # until a closed connection would be noticed
    if waiting:
        page.mouse.click(*window.at(30, 40, "map"))
        window.until_idle()
        window.tool("Delete")
        window.tool("Paint")  # a reloaded page begins with Select
    window.drag((40, 40), (40, 60))
    painted = (window.image("map") == TRAIN_COLOUR).all(2)
    assert painted[20, 50] and painted[40, 50]
    assert painted[30, 40] == waiting


@pytest.mark.thorough
def test_undo_by_key_need_not_wait_for_the_first_image(window) -> None:
    """Until the first edit is answered, the buttons are disabled."""
    first = window.image("map")
    window.tool("Delete")
    window.page.mouse.click(*window.at(60, 4))
    window.page.keyboard.press("Control+z")
    window.says(r"^Undid: a deletion\.")
    assert np.array_equal(window.image("map"), first)


@pytest.mark.thorough
def test_a_double_click_deletes_one_object(window, project: Path) -> None:
    first = window.image("map")
    _, y, x, _ = car(project)
    window.tool("Delete")
    window.after(lambda: window.page.mouse.dblclick(*window.at(y, x)))
    window.says(r"^Deleted car")
    window.page.wait_for_timeout(300)
    window.press("Undo")
    assert np.array_equal(window.image("map"), first)
    window.page.wait_for_timeout(500)
    window.click(y, x)
    window.says(r"^Deleted car")


@pytest.mark.thorough
def test_a_number_box_left_empty_or_out_of_range_takes_its_limit(window) -> None:
    window.tool("Paint")
    window.choose_class("train")
    box = window.page.locator("#radius input[type=number]")
    for typed, limit, rows in (("", "0", 1), ("64", "32", 64)):
        box.fill(typed)
        window.page.mouse.move(*window.at(32, 64))
        window.page.mouse.down()
        expect(box).to_have_value(limit)
        window.page.mouse.move(*window.at(32, 64.3))
        stroke = window.page.locator("figure.map .live")
        expect(stroke).to_have_attribute("stroke-width", str(2 * int(limit) + 1))
        window.page.mouse.up()
        window.says(r"^Painted train\.")
        painted = (window.image("map") == TRAIN_COLOUR).all(2)
        assert painted[:, 64].sum() == rows
        window.press("Undo")


def hold_the_first_request(page) -> Callable[[], None]:
    """Keep the next event's request from the server; returns a function to send it."""
    held = []

    def hold_the_first(route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/queue/join**", hold_the_first)
    return lambda: held[0].continue_()


@pytest.mark.thorough
def test_an_undo_does_not_overtake_what_it_undoes(window) -> None:
    """Each is a request of its own, and the connection of the first may be slow."""
    first, page = window.image("map"), window.page
    window.tool("Delete")
    release = hold_the_first_request(page)
    page.mouse.click(*window.at(60, 4))
    page.keyboard.press("Control+z")
    page.wait_for_timeout(500)
    release()
    window.says(r"^Undid: a deletion\.")
    assert np.array_equal(window.image("map"), first)
    page.unroute_all(behavior="wait")


@pytest.mark.thorough
def test_an_event_that_a_closing_stream_misses_gets_another(browser) -> None:
    """If Gradio gets the event's number before it learns that the stream of responses has been
    closed, it waits for that stream. One that stays open holds the number back only briefly."""
    page = browser.new_page()
    order = """async script => {
        let close;
        const start = (stream) => { close = () => stream.close(); };
        const body = () => new ReadableStream({ start });
        window.fetch = async (url) => new Response(url.includes("data") ? body() : "1");
        (0, eval)(script);
        keepOrder();
        const order = [];
        await fetch("/queue/data");
        await fetch("/queue/join").then(() => order.push("number"));
        setTimeout(() => order.push("closed") && close(), 50);
        await fetch("/queue/join").then(() => order.push("number"));
        return order;
    }"""
    assert page.evaluate(order, PAGE_SCRIPT.read_text()) == ["number", "closed", "number"]
    page.close()


@pytest.mark.thorough
def test_a_stroke_may_begin_before_the_choice_of_a_tool_is_answered(window) -> None:
    page = window.page
    before, turn = window.image("map"), int(window.turn())
    release = hold_the_first_request(page)
    page.locator("#tools").get_by_text("Paint", exact=True).click()
    page.mouse.move(*window.at(50, 40, "map"))
    page.mouse.down()
    page.mouse.move(*window.at(50, 80, "map"), steps=3)
    page.mouse.up()
    release()
    expect(page.locator(".pictures")).to_have_attribute("data-turn", str(turn + 2))
    changed = (window.image("map") != before).any(2)
    assert changed[50, 41] and changed[50, 79]
    page.unroute_all(behavior="wait")


@pytest.mark.thorough
def test_a_click_on_a_scene_that_is_being_left_does_not_edit_the_next_one(window) -> None:
    page = window.page
    window.tool("Delete")
    window.until_idle()
    release = hold_the_first_request(page)
    page.locator("#scene input").click()
    page.get_by_role("option").last.click()
    page.mouse.click(*window.at(50, 40))
    release()
    window.until_idle()
    window.says(rf"^the scene {SCENE} is no longer open; nothing was changed$")
    assert page.locator(".pictures").get_attribute("data-edited") == "no"
    page.unroute_all(behavior="wait")
    page.wait_for_timeout(500)  # or it would count as a double click
    window.click(50, 40)
    window.says("^Deleted")


def test_a_second_finger_leaves_a_stroke_alone(window) -> None:
    window.tool("Paint")
    window.choose_class("sky")
    before = window.image("map")
    places = [window.at(y, x, "map") for y, x in ((40, 10), (40, 30), (10, 100))]
    program = """places => {
        const canvas = document.querySelector("figure.map .canvas");
        const send = (type, id, [x, y]) => canvas.dispatchEvent(new PointerEvent(type, {
            pointerId: id, isPrimary: id === 1, button: 0, clientX: x, clientY: y, bubbles: true,
            pointerType: "touch",
        }));
        send("pointerdown", 1, places[0]);
        send("pointerdown", 2, places[2]);
        send("pointermove", 2, places[2]);
        send("pointermove", 1, places[1]);
        send("pointerup", 2, places[2]);
        send("pointerup", 1, places[1]);
    }"""
    window.after(lambda: window.page.evaluate(program, places))
    changed = (window.image("map") != before).any(2)
    assert changed[40, 10:31].all() and not changed[:30].any()


def test_a_stroke_that_leaves_the_image_does_not_go_on_along_its_border(window) -> None:
    window.tool("Paint")
    window.choose_class("train")
    window.drag((10, 40), (-20, 70), (-20, 110), (10, 100))
    painted = (window.image("map") == TRAIN_COLOUR).all(2)
    assert painted[10, 40] and painted[1, 49] and painted[10, 100] and painted[1, 103]
    assert not painted[:, 56:97].any() and not painted[:, 110:].any()


def test_downloads_and_replay_without_a_browser(window, project: Path, tmp_path: Path) -> None:
    number, y, x, _ = car(project)
    window.tool("Delete")
    window.click(y, x)
    window.tool("Paint")
    window.choose_class("vegetation")
    window.drag((20, 20), (30, 60))
    photograph = Image.open(io.BytesIO(window.save("Save photograph")))
    assert np.array_equal(np.asarray(photograph), window.image())
    window.says(r"^Saved ")
    label = np.asarray(Image.open(io.BytesIO(window.save("Save label map"))))
    inst = np.asarray(Image.open(io.BytesIO(window.save("Save instance map"))))
    assert label.dtype == np.uint8 and label[20, 20] == 21
    assert not (inst == number).any() and inst.max() > 255
    edits = tmp_path / "edits.json"
    edits.write_bytes(window.save("Save edit list"))
    assert [edit["tool"] for edit in json.loads(edits.read_text())["edits"]] == ["delete", "paint"]

    run_ok(
        *("edit.py", "--name", "tiny", "--checkpoints_dir", project / "checkpoints"),
        *("--gpu_ids", "-1", "--replay", edits, "--out", tmp_path / "out"),
    )
    again = np.asarray(Image.open(tmp_path / "out" / "photograph.png"))
    assert np.array_equal(again, np.asarray(photograph))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "label.png")), label)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "inst.png")), inst)


@pytest.mark.thorough
def test_two_windows_do_not_see_each_others_edits(browser, url: str, project: Path) -> None:
    _, y, x, _ = car(project)
    one, two = Window(browser, url), Window(browser, url)
    before = two.image()
    one.tool("Delete")
    one.click(y, x)
    two.click(y, x)
    two.says(r"^Selected car")
    assert np.array_equal(two.image(), before)
    assert not np.array_equal(one.image(), before)
    one.close()
    two.close()


def test_reloading_the_page_keeps_scene_edits_and_selection(window, project: Path) -> None:
    page = window.page
    first = window.image("map")
    window.tool("Paint")
    window.choose_class("train")
    window.drag((10, 10), (10, 40))
    edited, photograph = window.image("map"), window.image()
    assert (edited != first).any()
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    page.wait_for_selector(".pictures")
    window.says("again, as you left")
    np.testing.assert_array_equal(window.image("map"), edited)
    np.testing.assert_array_equal(window.image(), photograph)
    assert page.locator("#tools input:checked").get_attribute("value") == "Select"
    window.click(10, 25, "map")
    window.says("Selected train")
    window.press("Undo")
    np.testing.assert_array_equal(window.image("map"), first)


@pytest.mark.thorough
def test_a_reloaded_page_gets_the_previews_that_the_old_one_still_awaited(
    window, project: Path
) -> None:
    page, sent = window.page, []

    def only_the_click(route) -> None:
        sent.append(route)
        route.continue_() if len(sent) == 1 else route.abort()

    _, y, x, _ = car(project)
    page.route("**/queue/join**", only_the_click)
    window.click(y, x)
    page.unroute_all(behavior="wait")
    page.reload()
    expect(page.locator("#gallery .style img")).to_have_count(5)


@pytest.mark.thorough
def test_a_duplicated_tab_has_its_own_scenes(browser, window, project: Path) -> None:
    first = window.image("map")
    with browser.expect_page() as opened:  # with a copy of what the first tab has stored
        window.page.evaluate("() => { window.open(location.href); }")
    other = opened.value
    other.locator(".pictures").wait_for()
    other.locator("#scene input").click()
    other.get_by_role("option").last.click()
    other.wait_for_function("() => document.querySelector('.pictures').dataset.turn > 1")
    _, y, x, _ = car(project)
    window.click(y, x)
    window.says("^Selected car")
    assert np.array_equal(window.image("map"), first)
    other.close()


def test_own_maps_open_and_bad_ones_give_a_message(window, project: Path, tmp_path: Path) -> None:
    label, inst = scene_maps(project)
    page = window.page
    page.get_by_text("Open your own maps").click()

    def upload(label_file: Path, inst_file: Path) -> None:
        for part, path in (("label", label_file), ("inst", inst_file)):
            clear = page.locator(f"#own-{part}").get_by_label("Clear")
            if clear.count():
                clear.click()
            page.locator(f"#own-{part} input[type=file]").set_input_files(path)
            page.locator(f"#own-{part}").get_by_text(path.stem[:8]).first.wait_for()
        window.after(page.locator("#open-own button, button#open-own").first.click)

    good_label, good_inst = tmp_path / "mine_label.png", tmp_path / "mine_inst.png"
    Image.fromarray(label[:, ::-1].astype(np.uint8)).save(good_label)
    Image.fromarray(inst[:, ::-1].astype(np.uint16)).save(good_inst)
    upload(good_label, good_inst)
    window.says(r"^Opened your maps mine_label, 128x64\.")
    opened = window.image("map")
    listed = page.locator("#scene input")
    assert listed.input_value() == "your maps 1: mine_label"
    listed.click()
    page.locator("#title").click()
    page.wait_for_timeout(300)
    window.says("Opened your maps mine_label")

    text = tmp_path / "text_label.png"
    text.write_text("not a picture")
    too_large = tmp_path / "bomb_label.png"
    too_large.write_bytes(bomb(8000, 8000))
    wrong_label = tmp_path / "high_label.png"
    Image.fromarray((label + 100).astype(np.uint8)).save(wrong_label)
    for path, expected in (
        (text, "cannot be read as an image"),
        (too_large, "8000x8000 pixels"),
        (wrong_label, "--label_nc 35 allows 0 to 34"),
    ):
        upload(path, good_inst)
        line = window.says(re.escape(expected))
        assert path.name in line and str(tmp_path) not in line
        assert "editor_" not in line  # nor where the server keeps uploads
        assert "Traceback" not in page.content()
    assert np.array_equal(window.image("map"), opened)

    window.tool("Delete")
    window.click(60, 64)
    edited = window.image("map")
    Image.fromarray(label.T.astype(np.uint8)).save(good_label)
    Image.fromarray(inst.T.astype(np.uint16)).save(good_inst)
    upload(good_label, good_inst)
    window.says(r"^Opened your maps mine_label, 64x128\.")
    box = page.locator("figure.map .canvas").bounding_box()
    assert box["height"] == pytest.approx(2 * box["width"], abs=1)
    assert box["height"] <= page.viewport_size["height"]

    listed.click()
    window.after(page.get_by_role("option", name="your maps 1: mine_label").click)
    assert np.array_equal(window.image("map"), edited) and (edited != opened).any()


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(width + 1) * 10)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_a_style_comes_from_a_photograph(window, project: Path) -> None:
    number, y, x, _ = car(project)
    page = window.page
    window.click(y, x)
    page.get_by_text("Style from a photograph").click()
    before = window.image()
    page.locator("#photo-scene input").click()
    window.after(page.get_by_role("option", name=SCENE).click)
    page.set_viewport_size({"width": 800, "height": 1000})
    fits = page.locator("#photo-scene input").evaluate("box => box.scrollWidth <= box.clientWidth")
    page.set_viewport_size({"width": 1200, "height": 1000})
    assert fits  # the whole name of the scene
    canvas = page.locator("#photo .canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    window.after(lambda: page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 5))
    window.says(rf"Car {number} now has the photograph's style at that place\.")
    assert not np.array_equal(window.image(), before)
    window.press("All styles from this scene's photograph")
    window.says(r"Every object now has its style from the photograph\.")


def test_leaving_the_list_of_scenes_keeps_the_edits(window, project: Path) -> None:
    """Only a choice opens a scene, not a key that leaves the box as it was; and a scene that was
    edited is as it was left when it is opened again."""
    page, box = window.page, window.page.locator("#scene input")
    _, y, x, _ = car(project)
    window.tool("Delete")
    first = window.image("map")
    window.click(y, x)
    edited = window.image("map")
    for leave in ("Tab", "Escape", "x"):
        box.click()
        page.keyboard.press(leave)
        page.locator("#title").click()
    page.wait_for_timeout(300)
    window.says("Deleted car")
    assert box.input_value() == SCENE
    box.click()
    other = page.get_by_role("option").last
    name = other.inner_text().strip("\u2713 \n")
    window.after(other.click)
    window.says(f"Opened the scene {name}")
    assert name != SCENE
    pictures = page.locator(".pictures")
    assert pictures.get_attribute("data-edited") == "yes"  # the browser asks before a reload
    box.fill("000001")  # and by keyboard
    window.after(lambda: page.keyboard.press("Enter"))
    window.says("Opened the scene toyville_000001")
    box.fill(SCENE)
    window.after(lambda: page.keyboard.press("Enter"))
    window.says(rf"^Opened the scene {SCENE} again, as you left it\.$")
    assert np.array_equal(window.image("map"), edited)
    window.press("Undo")
    assert np.array_equal(window.image("map"), first)
    assert pictures.get_attribute("data-edited") == "no"


@pytest.mark.thorough
def test_screen_readers_get_the_tools_and_what_is_chosen(window) -> None:
    expect(window.page.get_by_role("group").filter(has_text="Delete")).to_contain_text("Tool")
    window.tool("Paint")
    window.choose_class("sky")
    expect(window.page.get_by_role("button", name="sky", pressed=True)).to_have_count(1)
    expect(window.page.locator("#classes").get_by_role("button", pressed=True)).to_have_count(1)


def test_no_request_leaves_the_machine_and_the_page_fits_narrow_windows(browser, url: str) -> None:
    window = Window(browser, url)
    for width in (1400, 900, 500):
        window.page.set_viewport_size({"width": width, "height": 900})
        assert window.page.evaluate("document.documentElement.scrollWidth") <= width
        for kind in ("photograph", "map"):
            box = window.page.locator(f"figure.{kind} .canvas").bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
    outside = [a for a in window.asked if not a.startswith((url, "data:", "blob:"))]
    assert not outside
    window.close()


# -- the server alone ------------------------------------------------------------------------


def test_the_server_serves_no_other_files(url: str, project: Path) -> None:
    secret = project / "checkpoints" / "tiny" / "opt.json"
    for path in (
        f"/gradio_api/file={secret}",
        f"/file={secret}",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=edit.py",
        "/static/../../../edit.py",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url.rstrip("/") + path, timeout=10)
        assert refused.value.code in (403, 404, 422), path
    assert url.startswith("http://127.0.0.1:")


def test_garbage_from_a_browser_is_refused_and_the_session_continues(url: str) -> None:
    client = Client(url, "garbage")
    client.call("begin")
    wrong = ("no", [[1, 2, 3]], [["a", 1]], [[None, 1]], [["1e999", 1]])
    for event in (*({"points": points} for points in wrong), {"y": 1}):
        answer = client.call("pointer", 3, 1, event=event)
        assert "the page sent something" in answer["status"] and "error" in answer["status"]
    answer = client.call("choose_label", event={"number": 99})
    assert "the model does not have it" in answer["status"]
    answer = client.call("pointer", 3, 1, event={"points": [[1, 2]]})
    assert "Selected" in answer["status"]


def test_a_session_that_never_began_asks_to_reload(url: str) -> None:
    answer = Client(url, "never-began").call("pointer", 3, 1, event={"points": [[1, 2]]})
    assert "reload the page" in answer["status"]


@pytest.mark.thorough
def test_fifty_requests_of_five_sessions_are_all_answered_and_none_mixed_up(url: str) -> None:
    """Each session paints its own column of dots; its map shows these and no others."""
    answers: dict[int, list[dict]] = {number: [] for number in range(5)}
    clients = [Client(url, f"stress{number}") for number in range(5)]
    for client in clients:
        client.call("begin")
        client.call("choose_tool", "Paint")
        client.call("choose_label", event={"number": TRAIN})

    threads = []
    for client, answered in zip(clients, answers.values()):
        dots = [[4 + step * 5, 5 + 20 * len(threads)] for step in range(10)]
        threads.append(threading.Thread(target=paint_at_once, args=(client, dots, answered)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, answered in answers.items():
        assert len(answered) == 10
        whole = np.zeros((64, 128), bool)
        for step in range(10):
            whole[3 + step * 5 : 6 + step * 5, 4 + number * 20 : 7 + number * 20] = True
        painted = [(label_map(answer["stage"]) == TRAIN_COLOUR).all(2) for answer in answered]
        assert all("Painted train." in answer["status"] for answer in answered)
        assert sorted(int(dots.sum()) for dots in painted) == [9 * k for k in range(1, 11)]
        assert not any((dots & ~whole).any() for dots in painted)


def paint_at_once(client: Client, dots: list[list[int]], answered: list[dict]) -> None:
    sent = [client.send("pointer", 1.5, 1, event={"points": [dot]}) for dot in dots]
    answered += client.answers(sent).values()


def test_actions_run_in_the_order_they_were_sent(url: str) -> None:
    """Each stroke has the class that was chosen just before it."""
    client = Client(url, "ordered")
    client.call("begin")
    client.call("choose_tool", "Paint")
    sent = []
    for k in range(10):
        sent.append(client.send("choose_label", event={"number": (TRAIN, CAR)[k % 2]}))
        dot = {"points": [[4 + k * 5, 5]]}
        sent.append(client.send("pointer", 1.5, 1, event=dot))
    answered = client.answers(sent)
    assert list(answered) == sent
    painted = label_map(answered[sent[-1]]["stage"])[4:54:5, 5]
    assert (painted[0::2] == TRAIN_COLOUR).all() and (painted[1::2] == (0, 0, 142)).all()


def label_map(stage: str) -> np.ndarray:
    address = re.findall(r'src="data:image/png;base64,([^"]+)"', stage)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address))))


@pytest.mark.thorough
def test_reset_is_offered_when_the_first_edits_can_no_longer_be_undone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from editor.page import EditorPage

    monkeypatch.setattr("models.scene.MAX_UNDO", 2)
    command = ["--name", "tiny", "--checkpoints_dir", str(project / "checkpoints")]
    opt = EditOptions().parse([*command, "--gpu_ids", "-1"])
    page = EditorPage(create_model(opt, torch.device("cpu")), Scenes(opt), [])
    assert not page.build().delete_cache  # uploaded maps can be opened again hours later
    view = page.begin("window")
    session = view[page.session]
    assert not view[page.reset].interactive
    session.tool, session.label = "Paint", TRAIN
    opened = session.ui.label.copy()
    for x in (10, 20, 30):
        page._act(session, lambda x=x: session.pointer((session.scene, [(10, x)]), 1, 1))
    for _ in range(2):
        view = page._act(session, session.undo)
    assert not view[page.undo].interactive and view[page.reset].interactive
    page._act(session, session.reset)
    assert np.array_equal(session.ui.label, opened)


def test_previews_start_again_for_a_page_reloaded_meanwhile(project: Path, monkeypatch) -> None:
    from editor.page import EditorPage

    command = ["--name", "tiny", "--checkpoints_dir", str(project / "checkpoints")]
    opt = EditOptions().parse([*command, "--gpu_ids", "-1"])
    page = EditorPage(create_model(opt, torch.device("cpu")), Scenes(opt), [])
    page.build()
    session = page.begin("window")[page.session]
    page._act(session, lambda: session.pointer((session.scene, [(60, 64)]), 1, 1))
    previews, again = session.ui.previews, []

    def reload(*args: object) -> np.ndarray:
        monkeypatch.undo()
        page.begin("window")
        again.append(session.generate_gallery())
        return previews(*args)

    monkeypatch.setattr(session.ui, "previews", reload)
    assert not session.generate_gallery()  # for the old page
    assert again == [True] and session.gallery is not None


# -- the command line ------------------------------------------------------------------------


REPLAYS = {
    "not JSON": "{",
    "too deep": "[" * 100_000,
    "not an edit list": "[]",
    "another format": '{"format": "else"}',
    "another model": '{"format": "pix2pixHD edit list 1", "label_nc": 7}',
    "no maps": '{"format": "pix2pixHD edit list 1", "label_nc": 35, "feat_num": 3, '
    '"features": {}, "edits": []}',
    "maps too large": '{"format": "pix2pixHD edit list 1", "label_nc": 35, "feat_num": 3, '
    '"features": {}, "edits": [], "inst": {"shape": [1000000, 1000000], "int32": ""}}',
}


@pytest.mark.parametrize("text", REPLAYS.values(), ids=REPLAYS)
def test_wrong_edit_lists_are_refused_in_one_line(
    text: str, project: Path, tmp_path: Path, refused
) -> None:
    import edit

    path = tmp_path / "edits.json"
    path.write_text(text)
    line = refused(
        edit.main,
        *("--name", "tiny", "--checkpoints_dir", project / "checkpoints", "--gpu_ids", "-1"),
        *("--replay", path, "--out", tmp_path / "out"),
    )
    assert str(path) in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", ["--replay x.json", "--port 70000", "--label_nc 0"])
def test_wrong_flags_are_refused_in_one_line(flags: str, project: Path, refused) -> None:
    import edit

    checkpoints = project / "checkpoints"
    refused(edit.main, "--name", "tiny", "--checkpoints_dir", checkpoints, *flags.split())


@pytest.mark.parametrize("flags", ["--replay= --out x", "--replay x --out="])
def test_an_empty_name_for_replay_is_refused(flags: str, project: Path) -> None:
    checkpoints = str(project / "checkpoints")
    with pytest.raises(UserError, match="--replay FILE needs --out DIR"):
        EditOptions().parse(["--name", "tiny", "--checkpoints_dir", checkpoints, *flags.split()])


@pytest.mark.thorough
@pytest.mark.skipif(
    getattr(signal, "SIGHUP", None) is None or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN,
    reason="needs SIGHUP, which nohup ignores",
)
def test_uploads_are_deleted_when_the_terminal_is_closed(project: Path) -> None:
    with running(project, stop=signal.SIGHUP):
        assert list(project.glob("uploads_*/editor_*"))


@pytest.mark.thorough
def test_a_proxy_is_not_asked_for_the_editors_own_page(project: Path, monkeypatch) -> None:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nothing listens
    with running(project) as address:
        assert address.startswith("http://127.0.0.1:")


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of any bytes")
def test_file_names_that_are_not_text_are_refused(project: Path, tmp_path: Path) -> None:
    for kind in ("label", "inst"):
        folder = tmp_path / f"test_{kind}"
        folder.mkdir()
        file = next((project / "toy" / f"test_{kind}").iterdir())
        (folder / os.fsdecode(b"stra\xdfe.png")).write_bytes(file.read_bytes())
    command = ["--name", "tiny", "--checkpoints_dir", str(project / "checkpoints")]
    opt = EditOptions().parse([*command, "--gpu_ids", "-1", "--dataroot", str(tmp_path)])
    with pytest.raises(UserError, match="not UTF-8 text"):
        Scenes(opt)


@pytest.mark.thorough
def test_a_port_in_use_is_refused_in_one_line(url: str, project: Path, refused) -> None:
    import edit

    port = url.rstrip("/").rpartition(":")[2]
    command = ["--name", "tiny", "--checkpoints_dir", project / "checkpoints", "--gpu_ids", "-1"]
    assert f"--port {port}" in refused(edit.main, *command, "--port", port)


def test_a_missing_run_is_refused_in_one_line(tmp_path: Path) -> None:
    line = one_line(run_command("edit.py", "--name", "none", "--checkpoints_dir", tmp_path))
    assert "none" in line

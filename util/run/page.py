"""The pages of a run: web/index.html (figures, curves, images), web/validation.html (fixed scenes
over time)."""

import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np
from dominate import tags
from dominate.util import raw

from util.errors import UserError
from util.files import remove_abandoned
from util.pages import html
from util.pages.colours import save_image
from util.pages.html import Page, Picture
from util.pages.plots import Series, require_matplotlib, save_curves, series, shown_width
from util.run.checkpoints import saved_options

Table = Sequence[Mapping]  # rows of metrics.jsonl or validation.jsonl
Facts = Mapping[str, str]

# The keys of rows that are not figures.
BOOKKEEPING = ("epoch", "iters", "step", "time", "data_time", "identical_pictures")
REFRESH_SECONDS = 30
_PAGES = ("index.html", "validation.html", "loss_curves.png", "validation_curves.png")
IMAGE_NAMES = ("input_label", "synthesized_image", "real_image")
_IMAGE = re.compile(r"epoch(\d+)_(.+)\.(?:png|jpg)")  # jpg: from the 2018 code

_SLIDER = (Path(html.__file__).parent / "slider.js").read_text()


def delete_pages(run_dir: Path) -> None:
    """Delete the pages, plots and images of an earlier run."""
    web = run_dir / "web"
    images = [path for path in (web / "images").glob("*") if _IMAGE.fullmatch(path.name)]
    for path in [*images, *(web / "validation").glob("*"), *(web / name for name in _PAGES)]:
        if path.is_file():
            path.unlink()


class RunPage:
    """Writes the pages from the files on disk and the rows of figures, so that a resumed run shows
    everything."""

    def __init__(self, run_dir: Path, display_winsize: int) -> None:
        """display_winsize: width in pixels at which a page shows an image. Raises UserError if
        matplotlib is missing."""
        require_matplotlib()
        self.run_dir, self.web, self.display_winsize = run_dir, run_dir / "web", display_winsize
        self.images, self.validation = self.web / "images", self.web / "validation"
        run_dir.mkdir(parents=True, exist_ok=True)
        self._make_folders()
        for folder in (self.web, self.images, self.validation):
            remove_abandoned(folder)
        self._curves_due = 0.0
        self._drawn: dict[str, object] = {}  # plot's file -> what it shows

    def _make_folders(self) -> None:
        """Called before each write, as a user may delete them during training."""
        for folder in (self.web, self.images, self.validation):
            folder.mkdir(exist_ok=True)

    def forget_after(self, epoch: int) -> None:
        """Delete the images of later epochs, which a killed run had begun but not saved."""
        for its_epoch, own in self._images().items():
            if its_epoch > epoch:
                for path in own.values():
                    path.unlink()

    def save_images(self, images: Mapping[str, np.ndarray], epoch: int) -> None:
        """Keep the images of a training step; the last ones of an epoch stay on the page."""
        self._make_folders()
        for name, image in images.items():
            save_image(image, self.images / f"epoch{epoch:03d}_{name}.png")

    def save_scenes(self, scenes: Mapping[str, Mapping[str, np.ndarray]], epoch: int) -> None:
        """Keep the images of validated scenes: scene -> name -> image (H, W, 3) uint8."""
        self._make_folders()
        for scene, images in scenes.items():
            for name, image in images.items():
                prefix = f"epoch{epoch:04d}_" if name == "synthesized_image" else f"{name}_"
                save_image(image, self.validation / f"{prefix}{scene}.jpg", quality=90)

    def write(self, rows: Table, validations: Table, facts: Facts, last: bool = False) -> None:
        """Write both pages. rows: of metrics.jsonl; validations: of validation.jsonl; facts: on
        the run and its progress, by name. last: redraw the curves, so that they show all rows."""
        self._make_folders()
        if (rows or validations) and (last or self.curves_are_due()):
            self._draw_curves(rows, validations, facts)
        page = Page(self.web, f"Training: {self.run_dir.name}", refresh=REFRESH_SECONDS)
        options = {}
        with suppress(UserError):  # damaged meanwhile, which is no reason to stop training
            options = saved_options(self.run_dir)
        origin = {"command": options.get("command_line"), "code": options.get("git_commit")}
        page.table([], [[name, text] for name, text in (facts | origin).items() if text])
        if validations:
            page.add(tags.p(tags.a("the validated scenes, epoch by epoch", href="validation.html")))
            self._write_scenes(validations, facts)
        for name in ("loss_curves.png", "validation_curves.png"):
            if (self.web / name).exists():
                page.row([Picture(name)], width=shown_width(self.web / name))
        for epoch, own in sorted(self._images().items(), reverse=True):
            order = [name for name in dict.fromkeys((*IMAGE_NAMES, *own)) if name in own]
            row = [Picture(own[name].relative_to(self.web), name) for name in order]
            page.row(row, heading=f"epoch {epoch}", width=self.display_winsize)
        page.save()

    def curves_are_due(self) -> bool:
        """Whether the curves are older than an open page's last reload."""
        return time.monotonic() >= self._curves_due

    def _draw_curves(self, rows: Table, validations: Table, facts: Facts) -> None:
        """Plot a panel for each figure if there are new values. This takes about a second, so it is
        done no more often than pages reload."""
        best = [row["step"] for row in validations if str(row["epoch"]) == facts.get("best")]
        marks = {"best": best[0]} if best else {}
        for name, table in (("loss_curves", rows), ("validation_curves", validations)):
            shown = len(table), marks
            if self._drawn.get(name) != shown and (panels := curve_panels(table)):
                smooth = name == "loss_curves"
                save_curves(self.web / f"{name}.png", panels, marks=marks, smooth=smooth)
                self._drawn[name] = shown
        self._curves_due = time.monotonic() + REFRESH_SECONDS

    def _images(self) -> dict[int, dict[str, Path]]:
        """The training images on disk: epoch -> name -> path."""
        found: dict[int, dict[str, Path]] = {}
        for path in sorted(self.images.glob("epoch*_*.*")):
            if match := _IMAGE.fullmatch(path.name):
                found.setdefault(int(match[1]), {})[match[2]] = path
        return found

    def _write_scenes(self, validations: Table, facts: Facts) -> None:
        """The page of fixed scenes: a row for each, and one slider that controls all of them."""
        files = {path.stem for path in self.validation.iterdir()}
        named = [name.removeprefix("real_image_") for name in files if name.startswith("real_")]
        shown = {
            row["epoch"]: {s for s in named if f"epoch{row['epoch']:04d}_{s}" in files}
            for row in validations
        }
        # those of the newest validation: a resumed run may use other scenes than before
        scenes = next((found for found in reversed(shown.values()) if found), set())
        if not scenes:
            return
        kept = [row for row in validations if scenes <= shown[row["epoch"]]]
        steps = [
            {"prefix": f"epoch{row['epoch']:04d}_", "text": _summary(row, facts.get("best"))}
            for row in kept
        ]
        last = str(len(kept) - 1)  # as text: dominate leaves out an attribute that equals False
        page = Page(self.web, f"Validation: {self.run_dir.name}", name="validation.html")
        slider = tags.input_(type="range", id="validation", min="0", max=last, value=last)
        page.add(tags.div(slider, tags.p(id="shown"), cls="pinned"))
        for scene in sorted(scenes):
            label = Picture(f"validation/input_label_{scene}.jpg", "input_label")
            newest = f"validation/{steps[-1]['prefix']}{scene}.jpg"
            quoted = quote(os.fsencode(scene))  # here, from bytes: names need not be Unicode
            generated = Picture(newest, "synthesized_image", data={"scene": quoted})
            real = Picture(f"validation/real_image_{scene}.jpg", "real_image")
            page.row([label, generated, real], heading=scene, width=self.display_winsize)
        page.add(tags.script(raw(f"const rows = {json.dumps(steps)};\n{_SLIDER}")))
        page.save()


def figure_names(tables: Iterable[Table]) -> list[str]:
    """The columns of tables that get a panel of their own."""
    names = dict.fromkeys(key for rows in tables for row in rows for key in row)
    of_photos = ("oracle_", "ratio_")  # measured on the photographs, or relative to them
    return [name for name in names if name not in BOOKKEEPING and not name.startswith(of_photos)]


def curve_panels(table: Table) -> dict[str, dict[str, Series]]:
    """A panel for each figure of the rows that has values: title -> label -> curve. If it was also
    measured on the photographs, the panel shows both."""
    panels = {}
    for name in figure_names([table]):
        curve, real = series(table, name), series(table, f"oracle_{name}")
        if len(curve[1]):
            both = {"generated": curve, "real": real}
            panels[name] = both if any(f"oracle_{name}" in row for row in table) else {name: curve}
    return panels


def _summary(row: Mapping, best: str | None) -> str:
    """A validation in one line."""
    names = ("mean_iou", "lpips", "ssim", "psnr", "l1")
    figures = [f"{name} {row[name]:.4g}" for name in names if row.get(name) is not None]
    ending = " (the best)" if f"{row['epoch']}" == best else ""
    return f"epoch {row['epoch']}{ending}: {', '.join(figures)}"

"""The record of a training run: loss_log.txt, metrics.jsonl, validation.jsonl, its page, and what
loggers send elsewhere."""

import errno
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError, first_line
from util.files import write_text
from util.progress import log
from util.run.loggers import Logger
from util.run.page import RunPage, delete_pages

Figures = dict[str, float]
Images = dict[str, np.ndarray]
_LOG_LINE = re.compile(r"\(epoch: (\d+), iters: (\d+), ")


class Rows:
    """The rows of figures in a file, one JSON object per line."""

    def __init__(self, path: Path, resume: bool) -> None:
        """resume: continue the rows of the file; else start as if it were empty."""
        self.path = path
        self.rows = read_rows(path) if resume else []

    def append(self, row: Figures) -> None:
        row = {key: value if math.isfinite(value) else None for key, value in row.items()}
        _append(self.path, json.dumps(row, allow_nan=False))  # JSON has no NaN: null
        self.rows.append(row)

    def truncate_after(self, step: int, epoch: int, done: int) -> None:
        def stays(row: Figures) -> bool:
            return row["epoch"] < epoch or (
                row["epoch"] == epoch and 0 <= step - row["step"] < done
            )

        self.rows = [row for row in self.rows if stays(row)]
        if self.path.exists():
            _rewrite(self.path, [json.dumps(row) for row in self.rows])


class Visualizer:
    """The record of one run. Only the main process makes one. A new run calls start_anew, a
    resumed one truncate_after, before it records anything."""

    def __init__(
        self, run_dir: Path, page: RunPage | None, resume: bool, loggers: Sequence[Logger] = ()
    ) -> None:
        """page: None for no page. resume: continue the existing files. loggers: services that get
        the figures as well."""
        self.loggers = list(loggers)
        self.page = page
        self.facts: dict[str, str] = {}  # what the page says about the run, by name
        run_dir.mkdir(parents=True, exist_ok=True)
        self._text_log = run_dir / "loss_log.txt"
        self._losses = Rows(run_dir / "metrics.jsonl", resume)
        self._validations = Rows(run_dir / "validation.jsonl", resume)

    def start_anew(self) -> None:
        """Clear the metrics and pages of an earlier run; loss_log.txt keeps its old lines."""
        header = f"================ Training Loss ({time.strftime('%c')}) ================"
        _rewrite(self._text_log, [*_whole_lines(self._text_log), header])
        _rewrite(self._losses.path, [])
        self._validations.path.unlink(missing_ok=True)
        delete_pages(self._text_log.parent)
        self._send(lambda logger: logger.start_anew())

    def display(self, images: Images, epoch: int, step: int, newest: bool = True) -> None:
        """Show images, name -> (H, W, 3) uint8; the last ones of an epoch stay on the page.

        newest: False if newer ones are waiting. The page, which takes seconds after hundreds of
        epochs, can then wait too: else a save or a stop would wait for many pages.
        """
        named = {f"visuals/{name}": image for name, image in images.items()}
        self._send(lambda logger: logger.images(step, named))
        if self.page:
            self.page.save_images(images, epoch)
            if newest or self.page.curves_are_due():
                self._write_page(f"{epoch}, step {step}")

    def show_validation(
        self, epoch: int, step: int, figures: Figures, scenes: dict[str, Images], best: int
    ) -> None:
        """Record a validation: figures by name, scenes -> name -> image (H, W, 3) uint8, and the
        epoch that is the best so far, 0 if none is."""
        self._validations.append({"epoch": epoch, "step": step, **figures})
        self.facts["best"] = str(best or "")
        generated = {f"validation/{s}": scenes[s]["synthesized_image"] for s in scenes}
        self._send(lambda logger: logger.scalars(step, _finite("validation/", figures)))
        self._send(lambda logger: logger.images(step, generated))
        if self.page:
            self.page.save_scenes(scenes, epoch)
            self._write_page(f"{epoch}, step {step}")

    def _write_page(self, where: str) -> None:
        self.facts["epoch"] = f"{where}, {time.strftime('%Y-%m-%d %H:%M')}"
        # copies: training continues to log while a page is written
        self.page.write([*self._losses.rows], [*self._validations.rows], dict(self.facts))

    def log(self, row: Figures, losses: Figures) -> str:
        """Record one row of losses and return its line of text, to be printed.

        row: epoch, iters (within the epoch), step (over the whole run), time and data_time (seconds
        per item), lr.
        """
        losses = {name: float(value) for name, value in losses.items()}
        line = f"(epoch: {row['epoch']}, iters: {row['iters']}, time: {row['time']:.3f})"
        line += "".join(f" {name}: {value:.3f}" for name, value in losses.items())
        _append(self._text_log, line)
        self._losses.append(row | losses)
        scalars = _finite("loss/", losses) | {"lr": row["lr"]}
        self._send(lambda logger: logger.scalars(row["step"], scalars))
        return line

    def _send(self, call: Callable[[Logger], None]) -> None:
        """Make a call to every logger. One that fails is dropped with a warning."""
        for logger in [*self.loggers]:
            try:
                call(logger)
            except Exception as error:  # each service has its own error types
                self.loggers.remove(logger)
                name = type(logger).__name__
                log(f"warning: {name} failed ({first_line(error)}); continuing without it")

    def truncate_after(self, step: int, epoch: int, done: int) -> None:
        """Forget what was logged beyond a step, with which `done` images of an epoch are done.

        A killed run may have logged past its last checkpoint. Those steps run again, and the logs
        must end up as if it had never been killed. Earlier epochs stay, even if their steps do not
        count as now: a run that continues from weights alone may have other scenes.
        """
        had_rows = bool(self._losses.rows)
        for rows in (self._losses, self._validations):
            rows.truncate_after(step, epoch, done)
        if had_rows:
            self._truncate_text_log()
        self._send(lambda logger: logger.forget_after(step))

    def close(self) -> None:
        """Write what is still pending: the last curves, the loggers' rows."""
        rows = [*self._losses.rows, *self._validations.rows]
        if self.page and rows:
            last = max(rows, key=itemgetter("step"))  # a kill may have prevented its page
            self.facts.setdefault("epoch", f"{last['epoch']}, step {last['step']}")
            self.page.write(self._losses.rows, self._validations.rows, self.facts, last=True)
        self._send(lambda logger: logger.close())

    def _truncate_text_log(self) -> None:
        """Drop this run's lines beyond the last kept row, and a half-written last line."""
        lines = _whole_lines(self._text_log)
        start = max((n for n, line in enumerate(lines, 1) if line.startswith("=====")), default=0)
        row = self._losses.rows[-1] if self._losses.rows else {"epoch": 0}
        iters = row.get("iters")  # may be missing if not written by us: keep the whole epoch
        last = row["epoch"], math.inf if iters is None else iters

        def stays(line: str) -> bool:
            match = _LOG_LINE.match(line)
            return not match or (int(match[1]), int(match[2])) <= last

        _rewrite(self._text_log, lines[:start] + [line for line in lines[start:] if stays(line)])


def _finite(prefix: str, figures: Figures) -> Figures:
    return {prefix + name: value for name, value in figures.items() if math.isfinite(value)}


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that a kill cut short; [] if no file."""
    rows = []
    for number, line in enumerate(_whole_lines(Path(path)), 1):
        try:
            rows.append(json.loads(line))
            if not _is_row(rows[-1]):
                raise ValueError("expected numbers below 1e300 by name, with step and epoch")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: line {number} is not a row in JSON ({error}): delete that line or the "
                "file"
            ) from error
    return rows


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
        return False
    if not all(isinstance(value, int | float | None) for value in row.values()):
        return False
    # no figure of a run is that large: a damaged exponent, whose curve could not be drawn
    huge = any(value and 1e300 < abs(value) < math.inf for value in row.values())
    return not huge and isinstance(row.get("step"), int)


def _whole_lines(path: Path) -> list[str]:
    """The lines that end in a newline; none if there is no file."""
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _append(path: Path, line: str) -> None:
    """Add a line, or raise OSError with the file as it was: a full disk leaves no half line."""
    content = (line + "\n").encode()
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(end)
            raise


def _rewrite(path: Path, lines: list[str]) -> None:
    """Replace a file's lines, whole or not at all."""
    write_text(path, "".join(line + "\n" for line in lines))

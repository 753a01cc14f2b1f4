"""What a training run records of itself: loss_log.txt, metrics.jsonl, validation.jsonl, its page,
and what loggers send elsewhere."""

import errno
import json
import math
import os
import re
import time as clock
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError
from util.files import replacing
from util.run.loggers import Logger
from util.run.page import RunPage

_LOG_LINE = re.compile(r"\(epoch: (\d+), iters: (\d+), ")
_HEADER = "================ Training Loss ({}) ================"


class Visualizer:
    """The record of one run. Only the main process makes one, after all that could fail early:
    a fresh start clears the metrics and images of an earlier run of the same name.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        write_html: bool,
        display_winsize: int,
        resume: bool,
        loggers: Sequence[Logger] = (),
    ) -> None:
        """display_winsize: width in pixels at which the page shows an image. loggers: services that
        get the figures as well.

        resume: go on with the files found; call truncate_after with the checkpoint's step.
        """
        self.run_dir = Path(run_dir)
        self.loggers = loggers
        self.facts: dict[str, str] = {}  # what the page says of the run, by name
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._text_log = self.run_dir / "loss_log.txt"
        self._metrics = self.run_dir / "metrics.jsonl"
        self._validation = self.run_dir / "validation.jsonl"
        self._page = RunPage(self.run_dir, display_winsize) if write_html else None
        if not resume:
            self._start_anew()
        self._rows, self._validations = read_rows(self._metrics), read_rows(self._validation)

    def display(self, images: dict[str, np.ndarray], epoch: int, step: int) -> None:
        """Show images, name -> (H, W, 3) uint8; the last ones of an epoch stay on the page."""
        for logger in self.loggers:
            named = {f"visuals/{name}": image for name, image in images.items()}
            logger.images(step, named)
        if self._page:
            self._page.save_images(images, epoch)
            self._write_page(f"{epoch}, step {step}")

    def show_validation(
        self,
        epoch: int,
        step: int,
        figures: dict[str, float],
        scenes: dict[str, dict[str, np.ndarray]],
        best: int,
    ) -> None:
        """Record a validation: figures by name, scenes -> name -> image (H, W, 3) uint8, and the
        epoch that is the best so far."""
        row = {"epoch": epoch, "step": step, **figures}
        row = {key: value if math.isfinite(value) else None for key, value in row.items()}
        _append(self._validation, json.dumps(row, allow_nan=False))
        self._validations.append(row)
        self.facts["best"] = str(best)
        finite = {f"validation/{k}": v for k, v in figures.items() if math.isfinite(v)}
        for logger in self.loggers:
            logger.scalars(step, finite)
            named = {f"validation/{s}": scenes[s]["synthesized_image"] for s in scenes}
            logger.images(step, named)
        if self._page:
            self._page.save_scenes(scenes, epoch)
            self._write_page(f"{epoch}, step {step}")

    def _write_page(self, where: str) -> None:
        self.facts["epoch"] = f"{where}, {clock.strftime('%Y-%m-%d %H:%M')}"
        # copies: training goes on to log while a page is written
        self._page.write(list(self._rows), list(self._validations), dict(self.facts))

    def log(
        self,
        epoch: int,
        iters: int,
        step: int,
        time: float,
        data_time: float,
        lr: float,
        losses: dict[str, float],
    ) -> str:
        """Record one row of losses and return its line of text, to be printed.

        iters counts within the epoch, step over the whole run; times are seconds per item.
        """
        losses = {name: float(value) for name, value in losses.items()}
        line = f"(epoch: {epoch}, iters: {iters}, time: {time:.3f})"
        line += "".join(f" {name}: {value:.3f}" for name, value in losses.items())
        row = {"epoch": epoch, "iters": iters, "step": step, "time": time}
        row |= {"data_time": data_time, "lr": lr, **losses}
        row = {key: value if math.isfinite(value) else None for key, value in row.items()}
        _append(self._text_log, line)
        _append(self._metrics, json.dumps(row, allow_nan=False))  # JSON has no NaN: null
        self._rows.append(row)
        for logger in self.loggers:
            finite = {f"loss/{n}": value for n, value in losses.items() if math.isfinite(value)}
            logger.scalars(step, finite | {"lr": lr})
        return line

    def truncate_after(self, step: int) -> None:
        """Forget what was logged beyond step.

        A killed run may have logged past its last checkpoint. Those steps run again, and the logs
        must end up as if it had never been killed.
        """
        if self._metrics.exists():
            self._rows = [row for row in self._rows if row["step"] <= step]
            _rewrite(self._metrics, [json.dumps(row) for row in self._rows])
            self._truncate_text_log()
        if self._validation.exists():
            self._validations = [row for row in self._validations if row["step"] <= step]
            _rewrite(self._validation, [json.dumps(row) for row in self._validations])
        for logger in self.loggers:
            logger.forget_after(step)

    def close(self) -> None:
        """Write out what is still held back: the last curves, the loggers' rows."""
        if self._page and "epoch" in self.facts:
            self._page.draw_curves(self._rows, self._validations, self.facts)
            self._page.write(self._rows, self._validations, self.facts)
        for logger in self.loggers:
            logger.close()

    def _start_anew(self) -> None:
        """Begin the logs of a fresh run; loss_log.txt keeps those of earlier runs above."""
        earlier = _whole_lines(self._text_log) if self._text_log.exists() else []
        _rewrite(self._text_log, [*earlier, _HEADER.format(clock.strftime("%c"))])
        _rewrite(self._metrics, [])
        self._validation.unlink(missing_ok=True)
        if self._page:
            self._page.start_anew()

    def _truncate_text_log(self) -> None:
        """Drop this run's lines beyond the last kept row, and a half-written last line."""
        if not self._text_log.exists():
            return
        lines = _whole_lines(self._text_log)
        headers = [i for i, line in enumerate(lines) if line.startswith("=====")]
        start = headers[-1] + 1 if headers else 0
        last = (self._rows[-1]["epoch"], self._rows[-1]["iters"]) if self._rows else (0, 0)

        def stays(line: str) -> bool:
            match = _LOG_LINE.match(line)
            return not match or (int(match[1]), int(match[2])) <= last

        _rewrite(self._text_log, lines[:start] + [line for line in lines[start:] if stays(line)])


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that a kill cut short; [] if no file."""
    path = Path(path)
    rows = []
    for number, line in enumerate(_whole_lines(path) if path.exists() else [], 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: line {number} is not JSON ({error}): delete that line or the file"
            ) from error
    return rows


def _whole_lines(path: Path) -> list[str]:
    """The lines that end in a newline."""
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
    with replacing(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

"""What a training run shows of itself: loss_log.txt, metrics.jsonl, web/index.html, TensorBoard."""

import errno
import json
import math
import os
import re
import time as clock
from pathlib import Path
from typing import Any

import numpy as np

from util.errors import UserError
from util.files import replacing
from util.pages.colours import save_image
from util.pages.html import Page, Picture
from util.pages.plots import require_matplotlib, save_curves, series, shown_width

# The keys of a metrics row that are not losses.
BOOKKEEPING = ("epoch", "iters", "step", "time", "data_time", "lr")

_REFRESH_SECONDS = 30
_PICTURE = re.compile(r"epoch(\d+)_(.+)\.png")
_LOG_LINE = re.compile(r"\(epoch: (\d+), iters: (\d+), ")
_HEADER = "================ Training Loss ({}) ================"


class Visualizer:
    """The record of one run. Only the main process makes one, after all that could fail early:
    a fresh start clears the metrics and training pictures of an earlier run of the same name.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        write_html: bool,
        tf_log: bool,
        display_winsize: int,
        resume: bool,
    ) -> None:
        """display_winsize: width in pixels at which the page shows a picture.

        resume: go on with the files found; call truncate_after with the checkpoint's step.
        """
        self.run_dir = Path(run_dir)
        self.write_html = write_html
        self.display_winsize = display_winsize
        self._board = None
        if tf_log:
            self._board_class = _summary_writer()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._text_log = self.run_dir / "loss_log.txt"
        self._metrics = self.run_dir / "metrics.jsonl"
        self._web = self.run_dir / "web"
        self._shown: tuple[list[str], int, int] | None = None
        self._curves_due = -math.inf
        if write_html:
            require_matplotlib()
            (self._web / "images").mkdir(parents=True, exist_ok=True)
        if not resume:
            self._start_anew()
        self._rows = read_rows(self._metrics)
        if tf_log:
            self._open_board(purge_step=None if resume else 0)

    def display(self, visuals: dict[str, np.ndarray], epoch: int, step: int) -> None:
        """Show pictures, name -> (H, W, 3) uint8; the last ones of an epoch stay on the page."""
        if self._board:
            for name, picture in visuals.items():
                self._board.add_image(f"visuals/{name}", picture, step, dataformats="HWC")
        if not self.write_html:
            return
        for name, picture in visuals.items():
            save_image(picture, self._web / "images" / f"epoch{epoch:03d}_{name}.png")
        self._shown = list(visuals), epoch, step
        if self._rows and clock.monotonic() > self._curves_due:
            self._draw_curves()
        self._write_page(*self._shown)

    def _draw_curves(self) -> None:
        """Draw a panel for each loss. It takes about a second: not more often than pages reload."""
        names = dict.fromkeys(key for row in self._rows for key in row)
        panels = {n: {n: series(self._rows, n)} for n in names if n not in BOOKKEEPING}
        save_curves(self._web / "loss_curves.png", panels)
        self._curves_due = clock.monotonic() + _REFRESH_SECONDS

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
        row = dict(zip(BOOKKEEPING, (epoch, iters, step, time, data_time, lr))) | losses
        row = {key: value if math.isfinite(value) else None for key, value in row.items()}
        _append(self._text_log, line)
        _append(self._metrics, json.dumps(row, allow_nan=False))  # JSON has no NaN: null
        self._rows.append(row)
        if self._board:
            for name, value in losses.items():
                self._board.add_scalar(f"loss/{name}", value, step)
            self._board.add_scalar("lr", lr, step)
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
        if self._board:
            self._board.close()
            self._open_board(purge_step=step + 1)

    def close(self) -> None:
        """Write out what is still held back: the last curves, TensorBoard's rows."""
        if self._shown and self._rows:
            self._draw_curves()
            self._write_page(*self._shown)
        if self._board:
            self._board.close()

    def _start_anew(self) -> None:
        """Begin the logs of a fresh run; loss_log.txt keeps those of earlier runs above."""
        earlier = _whole_lines(self._text_log) if self._text_log.exists() else []
        _rewrite(self._text_log, [*earlier, _HEADER.format(clock.strftime("%c"))])
        _rewrite(self._metrics, [])
        for path in self._pictures().values():
            path.unlink()
        (self._web / "loss_curves.png").unlink(missing_ok=True)

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

    def _open_board(self, purge_step: int | None) -> None:
        """purge_step: TensorBoard hides earlier files' events from this step on."""
        self._board = self._board_class(self.run_dir / "logs", purge_step=purge_step)

    def _pictures(self) -> dict[tuple[int, str], Path]:
        """The training pictures on disk: (epoch, name) -> path."""
        found = {}
        for path in sorted((self._web / "images").glob("epoch*_*.png")):
            if match := _PICTURE.fullmatch(path.name):
                found[int(match[1]), match[2]] = path
        return found

    def _write_page(self, names: list[str], epoch: int, step: int) -> None:
        """Rebuild web/index.html from the pictures on disk, so that a resumed run shows all."""
        page = Page(self._web, f"Training: {self.run_dir.name}", refresh=_REFRESH_SECONDS)
        page.header(f"epoch {epoch}, step {step}, {clock.strftime('%Y-%m-%d %H:%M')}")
        curves = self._web / "loss_curves.png"
        if curves.exists():
            page.row([Picture(curves.name)], width=shown_width(curves))
        pictures = self._pictures()
        for shown in sorted({epoch for epoch, _ in pictures}, reverse=True):
            own = {name: path for (epoch, name), path in pictures.items() if epoch == shown}
            order = [name for name in names if name in own]
            order += [name for name in own if name not in names]
            row = [Picture(own[name].relative_to(self._web), name) for name in order]
            page.row(row, heading=f"epoch {shown}", width=self.display_winsize)
        page.save()


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


def _summary_writer() -> type:
    """TensorBoard's writer, imported only for those who ask for it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"--tf_log needs TensorBoard ({error}): run `pip install tensorboard`, or leave it out"
        ) from error
    return SummaryWriter

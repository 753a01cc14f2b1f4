"""Curves over the steps of a run, and confusion matrices, drawn by matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter1d

from util.errors import optional_package
from util.files import replacing

WIDTH, HEIGHT = 3.6, 2.45  # inches of a panel
DPI = 200  # twice what the page shows, for sharp screens
MAX_CLASSES = 60  # shown in a confusion matrix
STYLE = {
    "axes.grid": True, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": "medium", "font.size": 9, "grid.alpha": 0.3, "legend.frameon": False,
    "text.parse_math": False,  # a run's name may hold dollar signs
}  # fmt: skip

Series = tuple[np.ndarray, np.ndarray]  # steps and values, both (N,), finite
Panels = Mapping[str, Mapping[str, Series]]  # title -> label -> curve


def require_matplotlib() -> type:
    """matplotlib's Figure. Raises UserError, which says what to do, if it cannot be imported."""
    install = "matplotlib (or train with --no_html)"
    # takes half a second: only if needed
    return optional_package("matplotlib.figure", "plots need", install).Figure


def shown_width(path: Path) -> int:
    """The width in pixels at which a page shows a saved plot."""
    with Image.open(path) as image:
        return image.width // 2


def series(rows: Sequence[Mapping[str, float]], name: str) -> Series:
    """Steps and values of a column of metrics rows, without missing and non-finite values."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def save_curves(
    path: Path, panels: Panels, *, marks: Mapping[str, float] | None = None, smooth: bool = True
) -> None:
    """Save one image with a panel for each title, and in it a curve for each label.

    marks: label -> step of a vertical line through all panels. smooth: show noisy values (all but
    lr) pale, without rare spikes, and their running mean dark.
    """
    Figure = require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.lines import Line2D

    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    lines = -(-len(panels) // columns)
    shared = (label for curves in panels.values() if len(curves) > 1 for label in curves)
    colours = {label: f"C{number}" for number, label in enumerate(dict.fromkeys(shared))}
    head = 0.17 * len(colours) + 0.1 if colours else 0  # inches, for a legend above all panels
    with rc_context(STYLE), replacing(path) as temporary:
        figure = Figure(figsize=(columns * WIDTH, lines * HEIGHT + head))
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        _set_margins(figure, columns, lines, head)
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes, (title, curves) in zip(grid, panels.items()):
            _draw_panel(axes, title, curves, colours, smooth and title != "lr")
            for label, step in (marks or {}).items():
                axes.axvline(step, color="tab:red", linewidth=1, linestyle=":", label=label)
        if marks:
            grid[0].legend(fontsize="small")
        # a space: matplotlib hides labels that begin with an underscore
        handles = [Line2D([], [], color=c, label=f" {label}") for label, c in colours.items()]
        if handles:
            figure.legend(handles=handles, loc="upper left", fontsize="small")
        figure.savefig(temporary, format="png", dpi=DPI)


def _set_margins(figure, columns: int, lines: int, head: float) -> None:
    """Leave room for titles and ticks around each panel, and head inches above all. matplotlib's
    own layouts measure every text first, which takes as long as drawing."""
    left, right, bottom, top = 0.7, 0.15, 0.5, 0.45  # inches; the title is above a factor like 1e-5
    figure.subplots_adjust(
        left=left / (columns * WIDTH),
        right=1 - right / (columns * WIDTH),
        bottom=bottom / (lines * HEIGHT + head),
        top=1 - (top + head) / (lines * HEIGHT + head),
        wspace=(left + right) / (WIDTH - left - right),
        hspace=(bottom + top) / (HEIGHT - bottom - top),
    )


def save_matrix(
    path: Path, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Save a matrix of counts (rows, columns) as an image: each row in percent of its sum. If there
    are many classes, it shows only some (see most_frequent)."""
    Figure = require_matplotlib()
    matrix, rows, columns = most_frequent(matrix, rows, columns)
    percent = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    with replacing(path) as temporary:
        figure = Figure(figsize=(0.4 * len(columns) + 2, 0.4 * len(rows) + 2), layout="constrained")
        axes = figure.subplots()
        axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        turned = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(columns)), columns, **turned)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                ink = "white" if value > 50 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink)
        figure.savefig(temporary, format="png", dpi=DPI // 2)


def most_frequent(
    matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]
) -> tuple[np.ndarray, Sequence[str], Sequence[str]]:
    """Reduce more than MAX_CLASSES classes to the most frequent ones, the rest summed as one.

    matrix (N, M) of counts, M >= N; rows: its N classes; columns: the same, then M - N others.
    Returns all three for the classes that are left, in the same order. An image of 1700 classes
    would take 18 GB.
    """
    count = len(rows)
    if count <= MAX_CLASSES:
        return matrix, rows, columns
    pixels = matrix.sum(1) + matrix[:, :count].sum(0)
    most = min(MAX_CLASSES, max(1, np.count_nonzero(pixels)))
    order = np.argsort(-pixels, kind="stable")
    shown, rest = np.sort(order[:most]), order[most:]
    groups, names = [[i] for i in shown], [rows[i] for i in shown]
    if pixels[rest].any():
        groups.append(rest)
        names.append("others")
    matrix = np.stack([matrix[group].sum(0) for group in groups])
    further = [[i] for i in range(count, len(columns))]
    matrix = np.stack([matrix[:, group].sum(1) for group in (*groups, *further)], 1)
    return matrix, names, [*names, *columns[count:]]


def _draw_panel(
    axes, title: str, curves: Mapping[str, Series], colours: Mapping[str, str], smooth: bool
) -> None:
    drawn = {label: curve for label, curve in curves.items() if len(curve[1])}
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if not drawn:
        axes.text(0.5, 0.5, "no finite value", ha="center", transform=axes.transAxes)
        return
    low, high = _value_range(np.concatenate([values for _, values in drawn.values()]), smooth)
    margin = 0.05 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    for label, (steps, values) in drawn.items():
        style = {"color": colours.get(label, "C0"), "marker": "." if len(values) < 50 else ""}
        if not smooth:
            axes.plot(steps, values, **style)
            continue
        axes.plot(steps, values, alpha=0.3, linewidth=0.7, **style)
        # clipped first: a single spike of 1e9 would lift the mean of all its neighbours
        mean = uniform_filter1d(values.clip(low, high), 2 * (len(values) // 50) + 1, mode="reflect")
        axes.plot(steps, mean, **style)
    if len(drawn) == 1:
        axes.set_title(f"{mean[-1] if smooth else values[-1]:.4g}", loc="right")


def _value_range(values: np.ndarray, noisy: bool) -> tuple[float, float]:
    """The range of the vertical axis: all values; many noisy ones without their rare spikes."""
    rare = 0.5 if noisy and len(values) >= 100 else 0
    low, high = np.percentile(values, [rare, 100 - rare])
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        spread = abs(low) / 2 or 1.0  # constant: put the line in the middle
        return low - spread, high + spread
    return low, high

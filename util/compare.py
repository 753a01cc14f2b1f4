"""Compare runs on one page: their curves overlaid, their last images side by side.

    python -m util.compare label2city_512p label2city_512p_plus

writes checkpoints/compare/index.html: tables of the last validations and of the flags that differ,
a panel for each figure with a curve for each run, and a row of images for each scene that all runs
validated.
"""

from pathlib import Path

from util.errors import UserError, run
from util.files import make_folder, write_bytes
from util.pages.html import Page, Picture
from util.pages.plots import save_curves, series, shown_width
from util.parser import Parser
from util.progress import log
from util.run.checkpoints import saved_options
from util.run.page import figure_names
from util.run.visualizer import read_rows

NOT_COMPARED = {"name", "command_line", "versions", "git_commit", "checkpoints_dir"}


def compare(folders: list[Path], out: Path) -> Path:
    """Write the page and return its path. Raises UserError if a folder holds no run."""
    folders = list(dict.fromkeys(folders))
    runs = {folder.name: folder for folder in folders}
    if len(runs) < len(folders):
        raise UserError("runs whose folders have the same name cannot be compared; rename one")
    losses = {name: read_rows(folder / "metrics.jsonl") for name, folder in runs.items()}
    validations = {name: read_rows(folder / "validation.jsonl") for name, folder in runs.items()}
    for name, folder in runs.items():
        if not losses[name] and not validations[name]:
            raise UserError(
                f"{folder}: nothing logged to compare (metrics.jsonl, validation.jsonl); train it "
                "with a smaller --print_freq or with validation"
                if folder.is_dir()
                else f"{folder}: no such run; expected a folder in --checkpoints_dir"
            )
    make_folder(out / "images", "--out")
    page = Page(out, f"Runs: {', '.join(runs)}")
    page.table(["", *runs], last_figures(validations))
    page.table(["", *runs], different_flags(runs))
    for file, tables in (("losses.png", losses), ("validations.png", validations)):
        if panels := common_panels(tables):
            save_curves(out / file, panels, smooth=file == "losses.png")
            page.row([Picture(file)], width=shown_width(out / file))
    for scene, row in common_scenes(runs, validations, out).items():
        page.row(row, heading=scene, width=512)
    return page.save()


def last_figures(validations: dict[str, list[dict]]) -> list[list[str]]:
    """A row for each figure: the last validation of each run."""
    last = [rows[-1] if rows else {} for rows in validations.values()]
    names = dict.fromkeys(name for row in last for name in row if name != "step")
    heads = {"epoch": "last validation after epoch"}
    return [[heads.get(name, name), *(_text(row.get(name)) for row in last)] for name in names]


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def different_flags(runs: dict[str, Path]) -> list[list[str]]:
    """A row for each flag whose values differ."""
    options = [saved_options(folder) for folder in runs.values()]
    names = sorted(set().union(*options) - NOT_COMPARED)
    table = [[f"--{name}", *(str(one.get(name, "")) for one in options)] for name in names]
    return [row for row in table if len(set(row[1:])) > 1]


def common_panels(tables: dict[str, list[dict]]) -> dict[str, dict]:
    """A panel for each figure, with a curve for each run that has it."""
    panels = {}
    for name in figure_names(tables.values()):
        curves = {run: series(rows, name) for run, rows in tables.items() if rows}
        if name != "lr" and any(len(values) for _, values in curves.values()):
            panels[name] = curves
    return panels


def common_scenes(
    runs: dict[str, Path], validations: dict[str, list[dict]], out: Path
) -> dict[str, list[Picture]]:
    """The scenes that all runs validated: label map, each run's last image, photograph."""
    folders = {name: folder / "web" / "validation" for name, folder in runs.items()}
    last = {name: last_images(folder, validations[name]) for name, folder in folders.items()}
    first = next(iter(folders.values()))
    rows = {}
    for scene in sorted(set.intersection(*map(set, last.values()))):
        images = {"input_label": first / f"input_label_{scene}.jpg"}
        images |= {name: own[scene] for name, own in last.items()}
        images["real_image"] = first / f"real_image_{scene}.jpg"
        if not all(path.is_file() for path in images.values()):
            continue  # a first validation that is still being written, or was interrupted
        rows[scene] = [
            Picture(f"images/{column}_{scene}.jpg", name) for column, name in enumerate(images)
        ]
        for picture, path in zip(rows[scene], images.values()):
            write_bytes(out / picture.path, path.read_bytes())
    return rows


def last_images(folder: Path, validations: list[dict]) -> dict[str, Path]:
    """scene -> image, from the last validation that has any."""
    for row in reversed(validations):
        prefix = f"epoch{row['epoch']:04d}_"
        paths = folder.glob(f"{prefix}*.jpg")
        if found := {path.stem.removeprefix(prefix): path for path in paths}:
            return found
    return {}


def main() -> None:
    parser = Parser(description="Compare runs on one page.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="NAME", help="folders in --checkpoints_dir")
    add("--checkpoints_dir", type=Path, default=Path("checkpoints"), help="folder of all runs")
    add("--out", type=Path, help="default: CHECKPOINTS_DIR/compare")
    opt = parser.parse_args()
    folders = [opt.checkpoints_dir / name for name in opt.runs]
    log(str(compare(folders, opt.out or opt.checkpoints_dir / "compare")))


if __name__ == "__main__":
    run(main)

"""Two training runs at once compared with one alone, on scenes of the quickstart's size.

    python -m benchmarks.side_by_side
    python -m benchmarks.side_by_side --set OMP_NUM_THREADS=1
    python -m benchmarks.side_by_side --set GOMP_SPINCOUNT=300000

Prints seconds per image, and how many times as long each of two training runs takes as one alone.
"""

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks import scene
from benchmarks.measure import benchmark_parser, report, trained
from util.errors import run
from util.parser import integer
from util.run.visualizer import read_rows

SCENES = 20


def train(root: Path, names: list[str], epochs: int, settings: dict[str, str]) -> list[float]:
    """Run one training per name, all at once. Returns each one's seconds per image."""
    flags = ["--n_blocks_global", "6", "--batchSize", "2", "--print_freq", str(SCENES)]
    flags += ["--dataroot", str(root), "--niter", str(epochs), "--niter_decay", "0"]
    with ThreadPoolExecutor() as pool:
        folders = pool.map(lambda name: trained(name, root / "runs", flags, **settings), names)
    return [seconds_per_image(folder) for folder in folders]


def seconds_per_image(folder: Path) -> float:
    """The median of a run's logged times without the first, which includes the warm-up."""
    return statistics.median(row["time"] for row in read_rows(folder / "metrics.jsonl")[1:])


def setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    return name, value


def main() -> None:
    parser = benchmark_parser(__doc__, repeat=None, device=False)
    parser.add_argument("--epochs", type=integer(2), default=8, help="of 20 scenes each")
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE",
        help="an environment variable for the training runs (may be repeated)",
    )  # fmt: skip
    given = parser.parse_args()
    settings = dict(given.set)
    with scene.temporary_folder() as folder:
        root = Path(folder)
        scene.write_scenes(root, SCENES, 128, 64)
        (alone,) = train(root, ["alone"], given.epochs, settings)
        both = train(root, ["first", "second"], given.epochs, settings)
    rows = [
        {"training": name, "seconds per image": seconds, "ratio": seconds / alone}
        for name, seconds in zip(("alone", "first of two", "second of two"), (alone, *both))
    ]
    given.device = torch.device("cpu")
    report("side_by_side", rows, given, settings=settings)


if __name__ == "__main__":
    run(main)

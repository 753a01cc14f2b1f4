"""Two trainings at once beside one alone, by train.py on toy scenes at the quickstart's size.

    python -m benchmarks.side_by_side
    python -m benchmarks.side_by_side --set OMP_NUM_THREADS=1
    python -m benchmarks.side_by_side --set GOMP_SPINCOUNT=300000

Prints seconds per image and how many times as long one takes beside another training.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import scene
from benchmarks.measure import report
from options.parser import Parser, integer
from util.errors import UserError, run

ROOT = Path(__file__).parents[1]
SCENES = 20
FLAGS = (
    "--gpu_ids -1 --loadSize 128 --ngf 16 --ndf 16 --num_D 3 --n_downsample_global 1"
    " --n_blocks_global 6 --n_layers_D 2 --no_vgg_loss --no_html --cache ram --batchSize 2"
    " --niter_decay 0"
)


def train(root: Path, names: list[str], epochs: int, settings: dict[str, str]) -> list[float]:
    """Run one training per name, all at once. Returns each one's seconds per image."""
    command = [sys.executable, "train.py", "--dataroot", str(root), *FLAGS.split()]
    command += ["--checkpoints_dir", str(root / "runs"), "--niter", str(epochs)]
    command += ["--print_freq", str(SCENES)]
    env = os.environ | settings
    started = [
        subprocess.Popen(
            [*command, "--name", name], cwd=ROOT, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for name in names
    ]  # fmt: skip
    return [seconds_per_image(process.communicate()[0], process.returncode) for process in started]


def seconds_per_image(output: str, status: int) -> float:
    """The median over a training's printed paces but the first, in which it warms up."""
    if status:
        raise UserError(f"train.py ended with status {status}: {output[-500:]}")
    paces = [float(line.split(" iters/s")[0].split("[")[-1]) for line in output.splitlines()
             if " iters/s" in line]  # fmt: skip
    return statistics.median(1 / pace for pace in paces[1:])


def setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    return name, value


def main() -> None:
    parser = Parser(description="Two trainings at once beside one alone.")
    parser.add_argument("--epochs", type=integer(2), default=8, help="of 20 scenes each")
    parser.add_argument(
        "--set", type=setting, action="append", default=[], metavar="NAME=VALUE",
        help="an environment variable of the trainings (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=None, help="write the results here as well")
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

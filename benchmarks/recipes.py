"""The gain from each part of --recipe plus: training runs on the toy scenes with and without it.

    python -m benchmarks.toy_segmenter --dataroot datasets/toy --steps 1000
    python -m benchmarks.recipes --dataroot datasets/toy --seeds 1,2,3

Every variant is trained for the same number of steps with each seed, --jobs of them at a time with
one thread each, and measured by the validation after its last epoch. Prints the table of
docs/recipes.md, mean +- standard deviation over the seeds. Completed runs are not trained again.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.measure import trained
from util.errors import run
from util.parser import Parser, integer
from util.progress import bar, log
from util.run.visualizer import read_rows

VARIANTS = {
    "paper": [],
    "plus": ["--recipe", "plus"],
    "plus, instance normalization": ["--recipe", "plus", "--norm", "instance"],
    "plus, transposed convolutions": ["--recipe", "plus", "--upsample", "transpose"],
    "plus, icnr": ["--recipe", "plus", "--upsample", "icnr"],
    "plus without L1": ["--recipe", "plus", "--lambda_L1", "0"],
    "plus without EMA": ["--recipe", "plus", "--ema", "0"],
    "plus without instance noise": ["--recipe", "plus", "--instance_noise", "0"],
}
FLAGS = [
    "--n_blocks_global", "6", "--lr", "0.0007", "--nThreads", "0", "--print_freq", "200",
    "--save_latest_freq", "1000000", "--val_freq", "1000000",
]  # fmt: skip
COLUMNS = {  # of validation.jsonl, and how many decimals
    "l1": 1, "ratio_grid_energy": 2, "ratio_sharpness": 2, "ratio_hue_variance": 2,
    "ratio_hue_mixture": 2, "ratio_brightness_variance": 2, "ratio_mean_iou": 3,
    "segmenter_kid": 4,
}  # fmt: skip
TITLES = ["mean difference", "grid", "sharpness", "hue", "mixture", "brightness", "IoU", "KID"]


def train(opt: argparse.Namespace, variant: str, seed: str) -> dict:
    """Train a variant, unless that is done; returns its last validation and the time of a step."""
    name = f"{variant.replace(', ', '_').replace(' ', '_')}-{seed}"
    constant = opt.epochs * 2 // 5
    flags = ["--seed", seed, *FLAGS, "--dataroot", opt.dataroot]
    flags += ["--niter", str(constant), "--niter_decay", str(opt.epochs - constant)]
    flags += ["--segmenter", f"torchscript:{opt.segmenter}", *VARIANTS[variant]]
    threads = {"OMP_NUM_THREADS": "1"} if opt.jobs > 1 else {}
    folder = trained(name, opt.checkpoints_dir, flags, **threads)
    times = [row["time"] for row in read_rows(folder / "metrics.jsonl")]
    return read_rows(folder / "validation.jsonl")[-1] | {"time": float(np.median(times))}


def table(rows: dict[str, list[dict]]) -> list[str]:
    """Markdown: a line for each variant, mean +- standard deviation over its seeds."""
    lines = [
        f"| recipe | {' | '.join(TITLES)} | time |",
        "| --- |" + " --- |" * (len(TITLES) + 1),
    ]
    base = np.mean([row["time"] for row in rows["paper"]])
    for variant, runs in rows.items():
        cells = []
        for column, decimals in COLUMNS.items():
            values = [row[column] for row in runs]
            cells.append(f"{np.mean(values):.{decimals}f} ± {np.std(values):.{decimals}f}")
        time = np.mean([row["time"] for row in runs]) / base
        lines.append(f"| {variant} | {' | '.join(cells)} | {time:.2f} |")
    return lines


def main() -> None:
    parser = Parser(description="Train and measure the recipes on toy scenes.")
    parser.add_argument("--dataroot", default="datasets/toy")
    parser.add_argument("--segmenter", default="checkpoints/toy_segmenter.pt")
    parser.add_argument("--checkpoints_dir", type=Path, default=Path("checkpoints/recipes"))
    parser.add_argument("--seeds", default="1,2,3", help="of the training runs")
    parser.add_argument("--epochs", type=integer(1), default=16)
    parser.add_argument("--jobs", type=integer(1), default=2, help="training runs at a time")
    opt = parser.parse_args()
    pairs = list(product(VARIANTS, opt.seeds.split(",")))
    rows: dict[str, list[dict]] = {variant: [] for variant in VARIANTS}
    with ThreadPoolExecutor(opt.jobs) as pool:
        results = pool.map(lambda pair: train(opt, *pair), pairs)
        for (variant, seed), row in zip(pairs, bar(results, total=len(pairs))):
            rows[variant].append(row)
            log(f"{variant}, seed {seed}: {json.dumps({c: row[c] for c in COLUMNS})}")
    log("\n".join(table(rows)))


if __name__ == "__main__":
    run(main)

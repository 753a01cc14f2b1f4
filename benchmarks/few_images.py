"""How much augmentation and pretrained weights gain if there are few scenes, on toy scenes.

    python -m benchmarks.few_images --dataroot datasets/toy

trains on the same 20 scenes with several seeds: plain, with --augment, and from the weights of a
run on all scenes whose classes are numbered differently, so that every input channel of the first
layers has to be remapped. Prints the mean difference to the photographs of the test scenes, in grey
levels, and after how many epochs the fine-tuned run is as good as the plain one at its end.

    python -m benchmarks.few_images --dataroot datasets/toy --reverse

trains in the other direction, from photographs to coloured label maps, which the photographs
determine: plain and with --augment.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import trained
from util.errors import UserError, run
from util.files import link_or_copy
from util.pages.colours import colour_label
from util.parser import Parser, integer
from util.progress import log
from util.run.visualizer import read_rows

CLASSES = 35
FLAGS = [
    "--n_blocks_global", "4", "--batchSize", "2", "--lr", "0.0007", "--lambda_L1", "30",
    "--nThreads", "0", "--print_freq", "1000", "--ignore_label", "255",
    "--save_latest_freq", "1000000", "--niter_decay", "0", "--val_max", "20",
]  # fmt: skip
REVERSED = [  # smaller and longer, so that the plain run overfits
    "--label_nc", "0", "--no_instance", "--loadSize", "64", "--num_D", "2",
    "--n_downsample_global", "2", "--niter", "150", "--niter_decay", "150", "--val_freq", "60",
]  # fmt: skip
FEW = ["--max_dataset_size", "20", "--val_freq", "5"]
MAPPING = ",".join(f"{CLASSES - 1 - label}={label}" for label in range(CLASSES))


def convert(
    dataroot: Path, out: Path, kinds: dict[str, str], changed: Callable[[np.ndarray], np.ndarray]
) -> Path:
    """Copy a data set: the folders PHASE_KIND of these kinds, under other kinds; label maps are
    changed, all other files linked. Returns out."""
    for path in dataroot.rglob("*.png"):
        phase, _, kind = path.parent.name.rpartition("_")
        if kind in kinds:
            copy = out / f"{phase}_{kinds[kind]}" / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if kind == "label":
                Image.fromarray(changed(np.asarray(Image.open(path)))).save(copy)
            elif not copy.exists():
                link_or_copy(path, copy)
    return out


def train(opt: argparse.Namespace, name: str, dataroot: Path, *flags: str) -> list[float]:
    """Train a run, unless that is done; returns the mean difference at each validation."""
    flags = *FLAGS, *flags, "--dataroot", str(dataroot)
    folder = trained(name, opt.checkpoints_dir, flags)
    return [row["l1"] for row in read_rows(folder / "validation.jsonl")]


def measure_reversed(opt: argparse.Namespace) -> None:
    """The table of --reverse."""
    kinds = {"img": "A", "label": "B"}
    colour = partial(colour_label, label_nc=CLASSES)
    dataroot = convert(opt.dataroot, opt.checkpoints_dir / "reversed", kinds, colour)
    log("| seed | plain | augmented | gain |\n| --- | --- | --- | --- |")
    for seed in opt.seeds.split(","):
        few = [*FEW, *REVERSED, "--seed", seed]
        plain = train(opt, f"reversed-plain-{seed}", dataroot, *few)[-1]
        few += ["--augment", opt.augment]
        augmented = train(opt, f"reversed-augmented-{seed}", dataroot, *few)[-1]
        log(f"| {seed} | {plain:.1f} | {augmented:.1f} | {1 - augmented / plain:.0%} |")


def main() -> None:
    parser = Parser(description="Measure what helps if there are few scenes.")
    parser.add_argument("--dataroot", type=Path, default=Path("datasets/toy"))
    parser.add_argument("--checkpoints_dir", type=Path, default=Path("checkpoints/few_images"))
    parser.add_argument("--seeds", default="1,2,3", help="of the training runs")
    parser.add_argument("--epochs", type=integer(5), default=100, help="on the 20 scenes")
    parser.add_argument("--base_epochs", type=integer(1), default=12, help="on all scenes")
    parser.add_argument("--augment", default="scale,shift", help="as for train.py")
    parser.add_argument("--reverse", action="store_true", help="from photographs to label maps")
    opt = parser.parse_args()
    if not opt.dataroot.is_dir():
        raise UserError(f"--dataroot {opt.dataroot}: no such folder")
    if opt.reverse:
        return measure_reversed(opt)
    kinds = {"img": "img", "label": "label", "inst": "inst"}
    renumbered = opt.checkpoints_dir / "renumbered"
    other = convert(opt.dataroot, renumbered, kinds, lambda label: CLASSES - 1 - label)
    train(opt, "base", other, "--niter", str(opt.base_epochs), "--val_freq", "100")
    augment = ["--augment", opt.augment]
    tune = ["--load_pretrain", str(opt.checkpoints_dir / "base"), "--map_classes", MAPPING]
    log("| seed | plain | augmented | gain | fine-tuned | as good after |")
    log("| --- | --- | --- | --- | --- | --- |")
    for seed in opt.seeds.split(","):
        few = [*FEW, "--seed", seed, "--niter", str(opt.epochs)]
        plain = train(opt, f"plain-{seed}", opt.dataroot, *few)
        augmented = train(opt, f"augmented-{seed}", opt.dataroot, *few, *augment)
        tuned = train(opt, f"fine-tuned-{seed}", opt.dataroot, *few, *tune)
        number = next((k for k, error in enumerate(tuned, 1) if error <= plain[-1]), None)
        reached = number and min(5 * number, opt.epochs)
        log(
            f"| {seed} | {plain[-1]:.1f} | {augmented[-1]:.1f} | "
            f"{1 - augmented[-1] / plain[-1]:.0%} | {tuned[-1]:.1f} | "
            f"{f'{reached} of {opt.epochs} epochs' if reached else 'never'} |"
        )


if __name__ == "__main__":
    run(main)

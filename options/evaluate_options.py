"""The flags of evaluate.py."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data.values import image_values
from options.base_options import CHANNELS, BaseOptions, check_range, inherited, value_flags
from util.errors import UserError
from util.parser import Flag, Group, integer, label_count, safe_name, safe_names
from util.run.checkpoints import run_dir

IMAGES = Group(
    "what is measured",
    Flag("--name", "label2city", "the run, or several: A,B", safe_names),
    Flag("--checkpoints_dir", "./checkpoints", "folder of all runs", "DIR"),
    Flag("--results_dir", "./results/", "where test.py wrote its pages", "DIR"),
    Flag("--phase", "test", "prefix of the data set's folders", safe_name),
    Flag("--which_epoch", "latest", "epoch of test.py's images, or several: 20,40", safe_names),
    Flag("--images", None, "what to measure; default: RESULTS_DIR/NAME/PHASE_EPOCH/images", "DIR"),
    Flag("--dataroot", "./datasets/cityscapes/", "folder of PHASE_label/ etc.", "DIR"),
    Flag("--label_nc", 35, "classes", label_count),
    Flag("--ignore_label", None, "label that is not evaluated", integer(-(2**31), 2**31 - 1)),
    Flag("--out", None, "folder of the results; default: next to the images", "DIR"),
)

CLASSES_HELP = "its classes: Cityscapes' 19 train ids, or the ids of the label maps"
SEGMENTERS = Group(
    "segmentation network",
    Flag("--segmenter", None, "hf:NAME_OR_DIR, torchscript:FILE or onnx:FILE", "KIND:WHICH"),
    Flag("--segmenter_classes", "trainIds", CLASSES_HELP, ["trainIds", "ids"]),
    Flag("--segmenter_width", None, "scale images to this width for it", integer(1)),
)

WEIGHTS_HELP = "weights for LPIPS, FID and KID; default: torch's cache"
WEIGHTS_DIR = Flag("--weights_dir", None, WEIGHTS_HELP, "DIR")

OUTPUT = [Flag("--output_nc", 3, "channels of the images", CHANNELS), *value_flags("output")]

MEASURING = Group(
    "how it is measured",
    WEIGHTS_DIR,
    Flag("--val_max", None, "at most this many scenes, as in training's validation", integer(1)),
    Flag("--gpu_ids", None, "a GPU, or -1 for the CPU"),
    *OUTPUT,
    Flag("--worst", 8, "how many of the worst images to show", integer(0)),
)


@SEGMENTERS.check
def check_segmenter(opt: argparse.Namespace) -> None:
    if opt.segmenter and opt.label_nc == 0:
        raise UserError("--segmenter needs label maps: --label_nc above 0")
    if opt.segmenter and opt.label_nc == 1 and opt.ignore_label == 0:
        raise UserError("--label_nc 1 --ignore_label 0: no class is left to evaluate")
    if opt.segmenter_width and not opt.segmenter:
        raise UserError("--segmenter_width needs --segmenter")
    if opt.segmenter_classes != "trainIds" and not opt.segmenter:
        raise UserError(f"--segmenter_classes {opt.segmenter_classes} needs --segmenter")


@MEASURING.check
def check_measuring(opt: argparse.Namespace) -> None:
    if opt.segmenter and not image_values(opt, "output").is_rgb8:
        raise UserError("--segmenter: segmenters see 8-bit RGB images; leave it out")
    if opt.label_nc == "auto":
        raise UserError("--label_nc auto: give the number of classes of the label maps")
    check_range(opt, "output")


@MEASURING.check
def check_weights_dir(opt: argparse.Namespace) -> None:
    if opt.weights_dir and not Path(opt.weights_dir).is_dir():
        raise UserError(f"--weights_dir {opt.weights_dir}: no such folder")


class EvaluateOptions(BaseOptions):
    description = (
        "Measure the images of test.py against the real photographs and label maps.\n"
        "--dataroot, --label_nc, --ignore_label and --output_* default to the values of the run."
    )
    groups = [IMAGES, SEGMENTERS, MEASURING]

    def parse_runs(self, argv: Sequence[str] | None = None) -> list[argparse.Namespace]:
        """The options of each run and epoch that is named. Raises UserError for wrong flags."""
        argv = sys.argv[1:] if argv is None else list(argv)
        named = self.parser().parse_args(argv)
        pairs = [(n, e) for n in named.name.split(",") for e in named.which_epoch.split(",")]
        if len(pairs) > 1 and (named.images or named.out):
            raise UserError("--images and --out are for one run and one epoch; leave them out")
        return [self.parse([*argv, "--name", n, "--which_epoch", e]) for n, e in pairs]

    def defaults(self, opt: argparse.Namespace) -> dict:
        """The run's opt.json gives the data set's defaults."""
        known = {"dataroot", "label_nc", "ignore_label", *(flag.name[2:] for flag in OUTPUT)}
        saved = inherited(run_dir(opt), opt.which_epoch)
        return {k: v for k, v in saved.items() if k in known}

    def complete(self, opt: argparse.Namespace) -> None:
        results = Path(opt.results_dir) / opt.name / f"{opt.phase}_{opt.which_epoch}"
        out = results / "evaluation"
        if opt.images:
            folder = Path(os.path.abspath(opt.images))  # "." has a name too
            out = folder.parent / f"{folder.name}_evaluation"
        opt.images = Path(opt.images) if opt.images else results / "images"
        opt.out = Path(opt.out) if opt.out else out
        opt.weights_dir = Path(opt.weights_dir) if opt.weights_dir else None

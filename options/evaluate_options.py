"""The flags of evaluate.py."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from options.base_options import (
    Parser,
    check_relative,
    gpu_list,
    inherited,
    integer,
    label_count,
    run_dir,
)
from util.errors import UserError

DESCRIPTION = "Measure the pictures of test.py against the real photographs and label maps."


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line (or argv); the run's opt.json gives the data set's defaults.

    Raises UserError for wrong flags.
    """
    parser = Parser(description=DESCRIPTION, allow_abbrev=False)
    declare(parser)
    run = run_dir(parser.parse_args(argv))
    known = {"dataroot", "label_nc", "ignore_label"}
    parser.set_defaults(**{k: v for k, v in inherited(run).items() if k in known})
    opt = parser.parse_args(argv)
    check(opt)
    opt.gpu_ids = gpu_list(opt.gpu_ids)
    results = Path(opt.results_dir) / opt.name / f"{opt.phase}_{opt.which_epoch}"
    opt.images = Path(opt.images) if opt.images else results / "images"
    opt.out = Path(opt.out) if opt.out else results / "evaluation"
    opt.weights_dir = Path(opt.weights_dir) if opt.weights_dir else None
    return opt


def declare(parser: Parser) -> None:
    """Add the flags, in groups."""
    what = parser.add_argument_group("what is measured")
    what.add_argument("--name", default="label2city", help="the run's folder in checkpoints_dir")
    what.add_argument("--checkpoints_dir", default="./checkpoints", help="where runs are kept")
    what.add_argument("--results_dir", default="./results/", help="where test.py wrote its pages")
    what.add_argument("--phase", default="test", help="which folders to use")
    what.add_argument("--which_epoch", default="latest", help="which pictures of test.py")
    what.add_argument(
        "--images",
        default=None,
        metavar="DIR",
        help="pictures to measure; default: RESULTS_DIR/NAME/PHASE_EPOCH/images",
    )
    what.add_argument("--dataroot", default="./datasets/cityscapes/", help="PHASE_label/ etc.")
    what.add_argument("--label_nc", type=label_count, default=35, help="number of classes")
    what.add_argument("--ignore_label", type=int, default=None, help="a label that is not judged")
    what.add_argument("--out", default=None, metavar="DIR", help="default: beside images/")

    how = parser.add_argument_group("how")
    how.add_argument(
        "--segmenter",
        default=None,
        metavar="KIND:WHICH",
        help="a segmentation network: hf:NAME_OR_DIR, torchscript:FILE or onnx:FILE",
    )
    how.add_argument(
        "--segmenter_classes",
        default="trainIds",
        choices=["trainIds", "ids"],
        help="what its outputs count: Cityscapes' 19 train ids, or the ids of the label maps",
    )
    how.add_argument(
        "--segmenter_width",
        type=integer(1),
        default=None,
        help="scale pictures to this width for the segmenter; default: as they are",
    )
    how.add_argument(
        "--weights_dir",
        default=None,
        metavar="DIR",
        help="the weights for LPIPS, FID and KID; default: torch's cache, or they are fetched",
    )
    how.add_argument("--gpu_ids", default=None, help="a GPU, or -1 for the CPU")
    how.add_argument("--worst", type=integer(0), default=8, help="how many of the worst to show")


def check(opt: argparse.Namespace) -> None:
    """Refuse flags that contradict each other."""
    check_relative("--name", opt.name)
    check_relative("--phase", opt.phase)
    check_relative("--which_epoch", opt.which_epoch)
    if opt.label_nc == "auto":
        raise UserError("--label_nc auto: give the number of classes of the label maps")
    if opt.segmenter and opt.label_nc == 0:
        raise UserError("--segmenter needs label maps: --label_nc above 0")
    if opt.segmenter and opt.label_nc == 1 and opt.ignore_label == 0:
        raise UserError("--label_nc 1 --ignore_label 0: no class is left to judge")
    if opt.segmenter_width and not opt.segmenter:
        raise UserError("--segmenter_width needs --segmenter")
    if opt.weights_dir and not Path(opt.weights_dir).is_dir():
        raise UserError(f"--weights_dir {opt.weights_dir}: no such folder")

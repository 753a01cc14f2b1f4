"""The flags that every command shares, and how flags are parsed, checked and written down."""

import argparse
import difflib
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
import torchvision

from util.errors import UserError
from util.files import write_text
from util.run.checkpoints import saved_options

# What test.py, encode_features.py and the editor take from a run's opt.json unless told otherwise
ARCHITECTURE = (
    *("netG", "ngf", "n_downsample_global", "n_blocks_global", "n_blocks_local"),
    *("n_local_enhancers", "norm", "use_dropout", "label_nc", "input_nc", "output_nc"),
    *("no_instance", "instance_feat", "label_feat", "feat_num", "nef", "n_downsample_E"),
)
DATA = ("dataroot", "loadSize", "fineSize", "resize_or_crop", "ignore_label")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and name a flag that may have been meant."""

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = re.search(r"unrecognized arguments: (\S+)", message)
        close = difflib.get_close_matches(unknown[1], known, 1) if unknown else []
        hint = f"did you mean {close[0]}?" if close else f"{self.prog} --help lists the flags"
        raise UserError(f"{message.removeprefix('argument ')}; {hint}")


class BaseOptions:
    """Declares, parses and checks flags. Subclasses add their own in declare and check."""

    is_train = False
    description = ""

    def declare(self, parser: Parser) -> None:
        """Add the flags, in groups."""
        run = parser.add_argument_group("run")
        run.add_argument("--name", default="label2city", help="the run's folder in checkpoints_dir")
        run.add_argument(
            "--gpu_ids",
            default=None,
            help="GPUs, e.g. 0 or 0,1,2 (each gets a process); -1: CPU; default: one if there is",
        )
        run.add_argument("--checkpoints_dir", default="./checkpoints", help="where runs are kept")
        run.add_argument("--model", default="pix2pixHD", choices=["pix2pixHD", "ui"])
        run.add_argument("--verbose", action="store_true", help="print the networks")
        run.add_argument(
            *("--local_rank", "--local-rank"),
            type=integer(0),
            default=0,
            help="set by torch.distributed.launch; torchrun needs none",
        )
        run.add_argument("--seed", type=integer(0), default=0, help="of every random choice")
        run.add_argument(
            "--deterministic",
            action="store_true",
            help="deterministic algorithms only; an operation that has none (CUDA) is an error",
        )
        run.add_argument("--tf_log", action="store_true", help="write TensorBoard files (training)")

        precision = parser.add_argument_group("precision and speed")
        precision.add_argument(
            "--data_type", type=int, default=32, choices=[8, 16, 32], help="bits, when testing"
        )
        precision.add_argument("--fp16", action="store_true", help="the same as --amp fp16")
        precision.add_argument(
            "--amp", default="off", choices=["off", "bf16", "fp16"], help="mixed precision"
        )
        precision.add_argument("--tf32", action="store_true", help="allow TF32 in float32 (CUDA)")
        precision.add_argument("--compile", action="store_true", help="torch.compile the networks")

        data = parser.add_argument_group("data")
        data.add_argument("--dataroot", default="./datasets/cityscapes/", help="PHASE_label/ etc.")
        data.add_argument("--batchSize", type=integer(1), default=1, help="pictures, over all GPUs")
        data.add_argument(
            "--loadSize", type=integer(1), default=1024, help="scale pictures to this"
        )
        data.add_argument("--fineSize", type=integer(1), default=512, help="then crop to this")
        data.add_argument(
            "--label_nc",
            type=label_count,
            default=35,
            help="number of classes; 0: RGB pictures as input; auto: the largest label plus 1",
        )
        data.add_argument("--input_nc", type=integer(1), default=3, help="channels if --label_nc 0")
        data.add_argument("--output_nc", type=integer(1), default=3, help="channels of the output")
        data.add_argument(
            "--resize_or_crop",
            default="scale_width",
            choices=["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"],
        )
        data.add_argument("--serial_batches", action="store_true", help="in order of name")
        data.add_argument("--no_flip", action="store_true", help="do not flip at random")
        data.add_argument(
            "--nThreads", type=integer(0), default=2, help="processes that read data; 0: threads"
        )
        data.add_argument(
            "--max_dataset_size", type=count_or_inf, default=None, help="use only so many scenes"
        )
        data.add_argument(
            "--ignore_label", type=int, default=None, help="a label value that means: no class"
        )
        data.add_argument(
            "--cache",
            default="none",
            choices=["none", "ram", "disk"],
            help="keep the scaled pictures in memory or in DATAROOT/.cache",
        )
        data.add_argument(
            "--display_winsize", type=integer(1), default=512, help="width of pictures on pages"
        )

        generator = parser.add_argument_group("generator")
        generator.add_argument("--netG", default="global", choices=["global", "local"])
        generator.add_argument("--ngf", type=integer(1), default=64, help="channels, first layer")
        generator.add_argument("--norm", default="instance", choices=["instance", "batch"])
        generator.add_argument("--use_dropout", action="store_true", help="in the residual blocks")
        generator.add_argument("--n_downsample_global", type=integer(0), default=4)
        generator.add_argument("--n_blocks_global", type=integer(0), default=9)
        generator.add_argument("--n_blocks_local", type=integer(0), default=3)
        generator.add_argument("--n_local_enhancers", type=integer(1), default=1)
        generator.add_argument(
            "--niter_fix_global",
            type=integer(0),
            default=0,
            help="train only the outermost enhancer for so many epochs",
        )

        features = parser.add_argument_group("instance features")
        features.add_argument("--no_instance", action="store_true", help="there is no inst folder")
        features.add_argument("--instance_feat", action="store_true", help="a feature per instance")
        features.add_argument("--label_feat", action="store_true", help="a feature per class")
        features.add_argument("--feat_num", type=integer(1), default=3, help="length of a feature")
        features.add_argument("--load_features", action="store_true", help="read PHASE_feat/")
        features.add_argument("--n_downsample_E", type=integer(0), default=4)
        features.add_argument("--nef", type=integer(1), default=16, help="E's first channels")
        features.add_argument("--n_clusters", type=integer(1), default=10, help="styles per class")

    def check(self, opt: argparse.Namespace) -> None:
        """Refuse flags that contradict each other."""
        check_relative("--name", opt.name)
        check_relative("--phase", opt.phase)
        check_relative("--which_epoch", opt.which_epoch)
        if opt.label_nc == "auto" and not self.is_train:
            raise UserError(
                f"--label_nc auto: {run_dir(opt)} has no opt.json with a count; give the number"
            )
        if opt.fp16 and opt.amp == "bf16":
            raise UserError("--fp16 and --amp bf16 exclude each other; give one of them")
        if opt.instance_feat and opt.no_instance:
            raise UserError("--instance_feat needs instance maps: leave --no_instance out")
        if opt.label_feat and opt.label_nc == 0:
            raise UserError("--label_feat needs label maps: --label_nc above 0")
        if opt.load_features and not (opt.instance_feat or opt.label_feat):
            raise UserError("--load_features needs --instance_feat or --label_feat")
        if opt.load_features and opt.feat_num > 4:
            raise UserError("--load_features reads PNG files, which hold at most 4 features")
        if opt.niter_fix_global and opt.netG != "local":
            raise UserError("--niter_fix_global needs --netG local")
        if opt.label_nc == 0 and opt.input_nc != 3:
            raise UserError(f"--input_nc {opt.input_nc}: input pictures are RGB, so 3")
        if opt.output_nc != 3:
            raise UserError(f"--output_nc {opt.output_nc}: photographs are RGB, so 3")

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the command line (or argv). Raises UserError for wrong flags.

        Commands that use a trained model take what the run's opt.json says as their defaults.
        """
        parser = Parser(description=self.description, allow_abbrev=False)
        self.declare(parser)
        opt = parser.parse_args(argv)
        if not self.is_train:
            known = inherited(run_dir(opt))
            parser.set_defaults(**known)
            opt = parser.parse_args(argv)
            if opt.label_nc == "auto":
                opt.label_nc = known.get("label_nc", "auto")  # what training counted
        opt.is_train = self.is_train
        opt.gpu_ids = gpu_list(opt.gpu_ids)
        self.check(opt)
        if opt.fp16:
            opt.amp = "fp16"
        return opt


def run_dir(opt: argparse.Namespace) -> Path:
    """checkpoints/NAME"""
    return Path(opt.checkpoints_dir) / opt.name


def inherited(folder: Path) -> dict:
    """The architecture and data flags that a training run wrote to its opt.json, if it did."""
    saved = saved_options(folder)
    flags = {flag: saved[flag] for flag in (*ARCHITECTURE, *DATA) if flag in saved}
    # random crops are for training: a test shows whole pictures
    whole = {"crop": "none", "scale_width_and_crop": "scale_width"}
    mode = flags.get("resize_or_crop")
    if mode in whole:
        flags["resize_or_crop"] = whole[mode]
    elif mode == "resize_and_crop":
        flags["fineSize"] = flags.get("loadSize", 1024)
    return flags


def write_options(opt: argparse.Namespace) -> None:
    """Write opt.txt for people and opt.json for test.py and the like into the run's folder."""
    folder = run_dir(opt)
    values = dict(sorted(vars(opt).items()))
    lines = [f"{flag}: {value}" for flag, value in values.items()]
    text = "\n".join(
        ["------------ Options -------------", *lines, "-------------- End -------------"]
    )
    write_text(folder / "opt.txt", text + "\n")
    record = {
        **values,
        "command_line": shlex.join(sys.argv),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "git_commit": git_commit(),
    }
    write_text(folder / "opt.json", json.dumps(record, indent=1) + "\n")


def git_commit() -> str | None:
    """The commit of this code, with "+" if files were changed; None outside a git checkout."""
    here = Path(__file__).parent
    describe = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def gpu_list(text: str | None) -> list[int]:
    """--gpu_ids as a list; [] is the CPU. Without the flag, the first GPU if there is one."""
    if text is None:
        return [0] if torch.cuda.is_available() else []
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--gpu_ids {text!r}: expected numbers like 0 or 0,1, or -1") from error
    ids = [i for i in ids if i >= 0]
    found = torch.cuda.device_count()
    if any(i >= found for i in ids):
        raise UserError(f"--gpu_ids {text}: {found} CUDA devices found; --gpu_ids -1 uses the CPU")
    if len(set(ids)) < len(ids):
        raise UserError(f"--gpu_ids {text}: a GPU is named twice")
    return ids


def check_relative(flag: str, value: str) -> None:
    """Refuse a name that would lead out of its folder."""
    path = Path(value)
    if not value or path.is_absolute() or ".." in path.parts or "\0" in value:
        raise UserError(f"{flag} {value!r}: expected a name inside its folder, without '..'")


def integer(low: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least low."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text!r}: expected an integer of at least {low}")
        return value

    return convert


def number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number in [low, high]."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number in {low}..{high}")
        return value

    return convert


def count_or_inf(text: str) -> int | None:
    """An argparse type: a positive integer, or None for "inf"."""
    return None if text in ("inf", "Infinity") else integer(1)(text)


def label_count(text: str) -> int | str:
    """An argparse type: --label_nc."""
    if text == "auto":
        return text
    value = integer(0)(text)
    if value > 65536:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at most 65536 classes, or auto")
    return value

"""The flags that every command shares, and how a command line becomes options.

To add a flag, add a row to a Group here or in the command's own file: parsing, --help, opt.txt and
opt.json follow. Conflicts with other flags are checked right after its group. Flags of a group with
inherited=True are passed on from training to test.py and other commands.

A flag that changes networks or training also belongs in util/run/flags.py; one that changes the
architecture, in models.DEFAULTS too. tests/test_options.py fails until it does.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from data.create import used_roles, without_crops
from data.values import ROLES, TYPES, refuse_beyond_type
from models.build import uses_features
from models.normalization import NORMS
from models.upsampling import UPSAMPLE
from util.errors import UserError
from util.parallel import available_cores
from util.parser import (
    Flag,
    Group,
    Parser,
    count_or_inf,
    integer,
    label_count,
    number,
    safe_name,
    value_range,
)
from util.run.checkpoints import options_file, run_dir, saved_options

CHANNELS = integer(1, 2**16)
COUNT = integer(0, 2**16)  # of channels that need not exist
DEPTH = integer(0, 30)
EMA = number(0, 1 - 1e-9)
SET_BY_DATA = ("label_nc", *(f"{role}_range" for role in ROLES))
SCALING = ["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"]

RUN = Group(
    "run",
    Flag("--name", "label2city", "folder of the run in --checkpoints_dir", safe_name),
    Flag("--checkpoints_dir", "./checkpoints", "folder of all runs", "DIR"),
    Flag("--model", "pix2pixHD", "ui: for the editor, see edit.py", ["pix2pixHD", "ui"]),
    Flag("--gpu_ids", None, "GPUs, e.g. 0,1 (a process each); -1: CPU; default: 0, else CPU"),
    Flag("--local_rank --local-rank", 0, "set by torch.distributed.launch", integer(0)),
    Flag("--seed", 0, "seed of all random number generators", integer(0, 2**63 - 1)),
    Flag("--deterministic", False, "deterministic algorithms only, else an error (CUDA)"),
    Flag("--verbose", False, "print the networks"),
    Flag("--tf_log", False, "log to TensorBoard (training)"),
)

PRECISION = Group(
    "precision and speed",
    Flag("--amp", "off", "mixed precision", ["off", "bf16", "fp16"]),
    Flag("--fp16", False, "the same as --amp fp16"),
    Flag("--data_type", 32, "bits per float at test time", [8, 16, 32]),
    Flag("--tf32", False, "allow TF32 in float32 (CUDA)"),
    Flag("--compile", False, "compile the networks with torch.compile"),
)


@PRECISION.check
def check_precision(opt: argparse.Namespace) -> None:
    if opt.data_type == 8 and not opt.is_train:  # training refuses all but 32
        raise UserError("--data_type 8: PyTorch has no 8-bit generator; use 16 or 32")
    if opt.fp16 and opt.amp == "bf16":
        raise UserError("--fp16 and --amp bf16 cannot be combined; give one of them")
    if opt.data_type == 16 and opt.amp == "bf16":
        raise UserError(
            "--data_type 16 (float16) and --amp bf16 cannot be combined; give one of them"
        )


def value_flags(role: str) -> list[Flag]:
    """How the numbers in the files of a role become [-1, 1]."""
    text = f"{role} values that become -1 and 1; type: limits of the type; auto: measured"
    return [
        Flag(f"--{role}_range", "type", text, value_range),
        Flag(f"--{role}_type", None, "type of these values; default: as in the files", [*TYPES]),
    ]


DATA = Group(
    "data set",
    Flag("--dataroot", "./datasets/cityscapes/", "folder of PHASE_label/, PHASE_img/, ...", "DIR"),
    Flag("--label_nc", 35, "classes; 0: RGB images as input; auto: counted", label_count),
    Flag("--ignore_label", None, "label of pixels without a class", integer(-(2**31), 2**31 - 1)),
    Flag("--no_instance", False, "there are no instance maps"),
    Flag("--input_nc", 3, "channels of the input with --label_nc 0", CHANNELS),
    Flag("--output_nc", 3, "channels of the generated image", CHANNELS),
    Flag("--cond_nc", 0, "channels of further maps in PHASE_cond/, e.g. depth", COUNT),
    *(flag for role in ROLES for flag in value_flags(role)),
    Flag("--resize_or_crop", "scale_width", "how to scale and, in training, crop", SCALING),
    Flag("--loadSize", 1024, "pixels to scale to", integer(1)),
    Flag("--fineSize", 512, "pixels to crop to", integer(1)),
    inherited=True,
)


@DATA.check
def check_data(opt: argparse.Namespace) -> None:
    if opt.label_nc == "auto" and not opt.is_train:
        raise UserError(
            f"--label_nc auto: {run_dir(opt)} has no opt.json with a count; give the number"
        )
    if opt.ignore_label is not None and opt.label_nc == 0 and opt.is_train:
        raise UserError("--ignore_label needs label maps: --label_nc above 0")
    for role in [] if opt.is_train else used_roles(opt):
        check_range(opt, role)


def check_range(opt: argparse.Namespace, role: str) -> None:
    """Raises UserError for a range that training should have measured, or would refuse."""
    dtype, given = getattr(opt, f"{role}_type"), getattr(opt, f"{role}_range")
    if given == "auto":
        raise UserError(
            f"--{role}_range auto: {run_dir(opt)} has no opt.json with a measured range; give "
            f"--{role}_range LOW,HIGH"
        )
    if given == "type" and dtype and TYPES[dtype] is None:
        raise UserError(
            f"--{role}_type {dtype}: such numbers have no range of their own; give "
            f"--{role}_range LOW,HIGH"
        )
    if not isinstance(given, str):
        refuse_beyond_type(role, dtype or "uint8", given)


LOADING = Group(
    "reading and showing images",
    Flag("--batchSize", 1, "total batch size over all GPUs (test.py: on each)", integer(1)),
    Flag("--serial_batches", False, "read scenes in order of name, not shuffled"),
    Flag("--no_flip", False, "no random horizontal flips"),
    Flag("--max_dataset_size", None, "use at most this many scenes; default: all", count_or_inf),
    Flag("--nThreads", 2, "worker processes (with GPUs 2 to 8); 0: threads", integer(0, 1024)),
    Flag("--cache", "none", "keep scaled images; disk: DATAROOT/.cache", ["none", "ram", "disk"]),
    Flag("--display_winsize", 512, "width of images on HTML pages, in pixels", integer(1)),
)

GENERATOR = Group(
    "generator",
    Flag("--netG", "global", "local: with local enhancers (1024p stage)", ["global", "local"]),
    Flag("--ngf", 64, "channels of the generator's first layer", CHANNELS),
    Flag("--norm", "instance", "normalization of all networks", list(NORMS)),
    Flag("--use_dropout", False, "dropout in the residual blocks"),
    Flag("--upsample", "transpose", "upsampling of all networks", UPSAMPLE),
    Flag("--ema", 0.0, "decay of the weights' moving average, e.g. 0.999; 0: none", EMA),
    Flag("--n_downsample_global", 4, "downsampling layers of the global generator", DEPTH),
    Flag("--n_blocks_global", 9, "residual blocks of the global generator", integer(0)),
    Flag("--n_local_enhancers", 1, "number of local enhancers", integer(1, 30)),
    Flag("--n_blocks_local", 3, "residual blocks of a local enhancer", integer(0)),
    inherited=True,
)

FEATURES = Group(
    "instance features",
    Flag("--instance_feat", False, "the generator sees encoded features of each instance"),
    Flag("--label_feat", False, "the generator sees encoded features of each class"),
    Flag("--instance_noise", 0, "without features: random numbers for each instance", COUNT),
    Flag("--feat_num", 3, "length of a feature", CHANNELS),
    Flag("--fit_features", False, "average loaded features over the instances at full size"),
    Flag("--nef", 16, "channels of the encoder's first layer", CHANNELS),
    Flag("--n_downsample_E", 4, "downsampling layers of the encoder", DEPTH),
    inherited=True,
)


@FEATURES.check
def check_features(opt: argparse.Namespace) -> None:
    if opt.instance_feat and opt.no_instance:
        raise UserError("--instance_feat needs instance maps, not --no_instance; leave one out")
    if opt.fit_features and opt.is_train and not opt.load_features:
        raise UserError("--fit_features is for features of half the size: add --load_features")
    if opt.instance_noise and (opt.no_instance or uses_features(opt)):
        raise UserError(
            "--instance_noise needs instance maps and replaces features: leave it out, or leave "
            "out --no_instance, --instance_feat and --label_feat"
        )
    if opt.label_feat and opt.label_nc == 0:
        raise UserError("--label_feat needs label maps: --label_nc above 0")


CLUSTERS_HELP = "maximum number of styles per class (encode_features.py; else --cluster_path)"
STAGES = Group(
    "1024p stage and styles",
    Flag("--load_features", False, "read features from PHASE_feat/ instead of encoding them"),
    Flag("--niter_fix_global", 0, "epochs that train only the outermost enhancer", integer(0)),
    Flag("--n_clusters", 10, CLUSTERS_HELP, integer(1)),
)


@STAGES.check
def check_stages(opt: argparse.Namespace) -> None:
    if opt.load_features and not uses_features(opt):
        raise UserError("--load_features needs --instance_feat or --label_feat")
    if opt.load_features and opt.feat_num > 4:
        raise UserError("--load_features reads PNG files, which hold at most 4 features")
    if opt.niter_fix_global and opt.netG != "local":
        raise UserError("--niter_fix_global needs --netG local")


CLUSTER_PATH = Flag("--cluster_path", "features_clustered_010.npy", "file of the styles", "FILE")


def scene_flags(phase: str) -> list[Flag]:
    """Which scenes and which weights a command uses."""
    return [
        Flag("--phase", phase, "prefix of the data set's folders: PHASE_label/ etc.", safe_name),
        Flag("--which_epoch", "latest", "epoch of the weights to load", safe_name),
    ]


class BaseOptions:
    """Declares, parses and checks a command's flags: those of its groups."""

    is_train = False
    phase_of_run = False  # whether the default of --phase is the one that the run was trained on
    description = ""
    groups = [RUN, PRECISION, DATA, LOADING, GENERATOR, FEATURES, STAGES]

    def parser(self) -> Parser:
        parser = Parser(usage="%(prog)s [--flag value ...]", description=self.description)
        for group in self.groups:
            group.add_to(parser)
        return parser

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the command line (or argv). Raises UserError for wrong flags."""
        parser = self.parser()
        defaults = self.defaults(parser.parse_args(argv))
        parser.set_defaults(**defaults)
        opt = parser.parse_args(argv)
        for name in SET_BY_DATA:  # training replaced these words by what it found
            if getattr(opt, name, None) in ("auto", "type"):
                setattr(opt, name, defaults.get(name, getattr(opt, name)))
        opt.is_train = self.is_train
        if not opt.is_train:
            vars(opt).update(without_crops(vars(opt)))
        opt.gpu_ids = gpu_list(opt.gpu_ids)
        for check in [check for group in self.groups for check in group.checks]:
            check(opt)
        self.complete(opt)
        return opt

    def defaults(self, opt: argparse.Namespace) -> dict:
        """Defaults that depend on other flags: commands that use a trained run take its own."""
        values = {} if self.is_train else inherited(run_dir(opt), opt.which_epoch)
        saved = saved_options(run_dir(opt), opt.which_epoch) if self.phase_of_run else {}
        if "phase" in saved:
            values["phase"] = saved["phase"]
        if gpus := gpu_list(opt.gpu_ids):
            values["nThreads"] = reading_processes(len(gpus))
        return values

    def complete(self, opt: argparse.Namespace) -> None:
        """Set what follows from the checked flags."""
        if opt.fp16:
            opt.amp = "fp16"


def inherited(folder: Path, epoch: str = "latest") -> dict:
    """The values of the flags that later commands inherit from a run's opt.json, if it has one."""
    flags = [flag for group in BaseOptions.groups if group.inherited for flag in group.flags]
    accepts = {flag.name.removeprefix("--"): flag.accepts for flag in flags}
    values = {k: value for k, value in saved_options(folder, epoch).items() if k in accepts}
    for name, value in values.items():
        if not accepts[name](value):
            raise UserError(
                f"{options_file(folder, epoch)}: {name} is {value!r}, invalid for --{name}; "
                "restore the file from a copy, or fix it"
            )
    return values


def reading_processes(gpus: int) -> int:
    """--nThreads on GPUs, which need 50 scenes a second and more: about the number of CPU cores
    for each GPU, 2 to 8."""
    processes = max(gpus, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(8, max(2, available_cores() // processes - 1))


def gpu_list(text: str | None) -> list[int]:
    """--gpu_ids as a list; [] is the CPU. Without the flag, the first GPU if there is one."""
    if text is None:
        return [0] if torch.cuda.is_available() else []
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--gpu_ids {text!r}: expected numbers like 0 or 0,1, or -1") from error
    ids, found = [i for i in ids if i >= 0], torch.cuda.device_count()
    if any(i >= found for i in ids):
        raise UserError(f"--gpu_ids {text}: {found} CUDA devices found; --gpu_ids -1 uses the CPU")
    if len(set(ids)) < len(ids):
        raise UserError(f"--gpu_ids {text}: a GPU is named twice")
    return ids

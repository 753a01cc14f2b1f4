"""Which flags a continued run must keep and which it may change; what runs did before a flag
existed; opt.txt and opt.json.

A new flag that changes networks or training has two entries here: in one of the two lists, and in
OLD_DEFAULTS. tests/test_options.py reports a missing one.
"""

import argparse
import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from util.files import write_text

# A resumed run must train the same networks as the run that it continues ...
NETWORK_FLAGS = (
    "netG", "ngf", "n_downsample_global", "n_blocks_global", "n_blocks_local",
    "n_local_enhancers", "norm", "use_dropout", "upsample", "ema", "label_nc", "input_nc",
    "output_nc", "cond_nc", "no_instance", "instance_feat", "label_feat", "feat_num", "nef",
    "n_downsample_E", "load_features", "instance_noise", "lambda_latent", "fit_features", "ndf",
    "n_layers_D", "num_D", "instance_mean_D", "no_ganFeat_loss", "freeze",
)  # fmt: skip
# ... but these may change, which it reports.
TRAINING_FLAGS = (
    "niter", "niter_decay", "niter_fix_global", "lr", "beta1", "batchSize", "pool_size", "seed",
    "lambda_feat", "lambda_L1", "no_vgg_loss", "no_lsgan", "amp", "dataroot", "loadSize",
    "fineSize", "resize_or_crop", "serial_batches", "no_flip", "max_dataset_size",
    "ignore_label", "input_range", "input_type", "output_range", "output_type", "cond_range",
    "cond_type", "loss_weights", "augment", "phase", "val_phase", "val_freq", "val_max",
    "best_metric", "patience", "segmenter",
)  # fmt: skip

# What runs did before these flags existed; their opt.json does not contain them.
OLD_DEFAULTS = {
    "upsample": "transpose", "ema": 0.0, "lambda_L1": 0.0, "lambda_latent": 0.0,
    "instance_noise": 0, "fit_features": False, "instance_mean_D": False,
    "cond_nc": 0, "input_range": "type", "output_range": [0.0, 255.0], "cond_range": "type",
    "input_type": None, "output_type": "uint8", "cond_type": None,
    "loss_weights": False, "augment": [], "freeze": [],
    "phase": "train", "val_phase": None, "val_freq": 5, "val_max": 50, "best_metric": None,
    "patience": None, "segmenter": None,
}  # fmt: skip


def write_options(folder: Path, opt: argparse.Namespace) -> None:
    """Write opt.txt, for people, and opt.json, for test.py etc., into the run's folder."""
    values = dict(sorted(vars(opt).items()))
    lines = [f"{flag}: {value}" for flag, value in values.items()]
    head, foot = "------------ Options -------------", "-------------- End -------------"
    write_text(folder / "opt.txt", "\n".join([head, *lines, foot, ""]))
    versions = {"torch": torch.__version__, "torchvision": version("torchvision")}
    values["command_line"] = shlex.join(sys.argv)
    values["versions"] = {"python": platform.python_version(), **versions}
    values["git_commit"] = git_commit()
    write_text(folder / "opt.json", json.dumps(values, indent=1) + "\n")


def git_commit() -> str | None:
    """The commit of this code, with "+" if files were changed; None outside a git checkout."""
    describe = ["git", "describe", "--always", "--abbrev=40", "--dirty=+"]
    here = Path(__file__).parent
    try:
        done = subprocess.run(describe, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

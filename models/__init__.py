"""Networks, losses, and the models made of them."""

import argparse
from pathlib import Path

import torch
from torch import nn

from data.values import ROLES, TYPES
from models.build import uses_features
from models.inference_model import InferenceModel
from models.normalization import NORMS
from models.pix2pixHD_model import Pix2PixHDModel
from models.run_encoder import run_styles
from models.ui_model import UIModel
from models.upsampling import UPSAMPLE
from util.errors import UserError, first_line
from util.parser import is_range
from util.progress import log_main
from util.run.checkpoints import run_dir, saved_options


def create_model(
    opt: argparse.Namespace, device: torch.device, one_size: bool = False
) -> nn.Module | UIModel:
    """The model that a command's flags describe: for training, for testing, or for the editor.

    one_size: see Pix2PixHDModel.
    """
    if opt.is_train:
        return Pix2PixHDModel(opt, device, one_size)
    folder = run_dir(opt)
    networks = InferenceModel(opt, device, folder)
    if opt.model != "ui":
        return networks
    styled = uses_features(opt) and not opt.replay  # an edit list holds the styles it needs
    styles = run_styles(folder, opt) if styled else {}
    return UIModel(networks, styles)


def create_encoder(opt: argparse.Namespace, device: torch.device, folder: Path) -> InferenceModel:
    """The trained encoder in a folder, the run's own or another run's, without a generator."""
    model = InferenceModel(opt, device, run_dir(opt), with_generator=False)
    model.load_encoder(folder)
    if opt.verbose:
        log_main(str(model))
    return model


def load_generator(
    folder: str | Path,
    *,
    epoch: str | int = "latest",
    device: str | torch.device = "cpu",
    data_type: int = 32,
    **flags: object,
) -> InferenceModel:
    """A trained generator to call from Python: G = load_generator("checkpoints/NAME").

    image = G(label, inst) is then (H, W, 3) uint8 for maps (H, W) as arrays, tensors or PIL images;
    see InferenceModel.forward. The architecture is read from the folder's opt.json; flags override
    it, or give it where there is none: load_generator(folder, ngf=32). data_type 16 computes in
    half precision; torch's global settings (e.g. TF32) are left to the caller. Raises UserError if
    weights, architecture or device are missing or do not match, TypeError for an unknown flag.
    """
    folder = Path(folder)
    if unknown := sorted(set(flags) - set(DEFAULTS)):
        raise TypeError(f"load_generator: unknown flag {unknown[0]}; known: {', '.join(DEFAULTS)}")
    if data_type not in (16, 32):
        raise UserError(f"data_type {data_type}: expected 16 or 32")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected checkpoints/NAME of a trained run")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # which one depends on the device
        raise UserError(
            f'device {device}: {first_line(error)}; device="cpu" works everywhere'
        ) from error
    options = {**DEFAULTS, **saved_options(folder, epoch), **flags}
    for name in DEFAULTS:
        if expected := _expected_instead(name, options[name]):
            raise UserError(f"{folder}: {name} is {options[name]!r}, expected {expected}")
    options.update(which_epoch=epoch, data_type=data_type, compile=False, amp="off")
    options.update(load_features=False, tf32=False)
    return InferenceModel(argparse.Namespace(**options), device, folder)


def _expected_instead(name: str, value: object) -> str | None:
    """What an option must be if this value is invalid, else None. Integers may stand for floats,
    and lists for text (ranges); options that are None by default may have any type."""
    default = DEFAULTS[name]
    if isinstance(default, bool) or isinstance(value, bool):
        fits = type(value) is type(default)
    elif isinstance(default, (int, float)):
        fits = isinstance(value, (int, type(default))) and value >= 0
    else:
        fits = default is None or isinstance(value, (str, list, tuple))
    if not fits:
        return f"a value like {default!r}"
    if name in CHOICES and value not in CHOICES[name]:
        return f"one of {', '.join(map(str, CHOICES[name]))}"
    if name.endswith("_range") and not is_range(value):
        return "[low, high] or 'type'"
    return None


CHOICES = {"netG": ["global", "local"], "norm": list(NORMS), "upsample": UPSAMPLE}
CHOICES |= {f"{role}_type": [None, *TYPES] for role in ROLES}
DEFAULTS = {  # of the flags that define an architecture, for checkpoints of the 2018 code
    "netG": "global", "ngf": 64, "n_downsample_global": 4, "n_blocks_global": 9,
    "n_blocks_local": 3, "n_local_enhancers": 1, "norm": "instance", "use_dropout": False,
    "upsample": "transpose", "ema": 0.0, "instance_noise": 0, "fit_features": False,
    "label_nc": 35, "input_nc": 3, "output_nc": 3, "no_instance": False, "ignore_label": None,
    "cond_nc": 0, "input_range": "type", "output_range": "type", "cond_range": "type",
    "input_type": None, "output_type": None, "cond_type": None,
    "instance_feat": False, "label_feat": False, "feat_num": 3, "nef": 16, "n_downsample_E": 4,
}  # fmt: skip

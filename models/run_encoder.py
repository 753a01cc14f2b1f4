"""The encoder of a run, its own or that of a run it was pretrained from; the styles of a run, and
which encoder made them."""

import argparse
import json
from pathlib import Path

from models.styles import Styles, load_styles
from util.errors import UserError
from util.files import checksum_of, write_text
from util.progress import log_main
from util.run.checkpoints import is_saved, load_file, saved_options, weights_file
from util.run.flags import OLD_DEFAULTS

ENCODERS = "encoders.json"  # in a run's folder: file of features -> checksum of its encoder


def run_and_pretrained(folder: Path) -> list[Path]:
    """A run's folder and those of the runs it was pretrained from, newest first: in their original
    place or, if they were moved together or the working directory has changed, next to the run."""
    folders = [folder]
    while True:
        source = saved_options(folders[-1]).get("load_pretrain")
        if not source:
            return folders
        path = Path(source)
        if not path.is_dir() and (sibling := folders[-1].parent / path.name).is_dir():
            path = sibling
        if path in folders:
            return folders
        folders.append(path)


def find_encoder(
    run: Path, opt: argparse.Namespace, own: Path
) -> tuple[Path | None, argparse.Namespace]:
    """The file of the encoder of a run, its own or that of the run whose features it was trained
    on, or None; and the flags of its architecture. own: the folder of the run that opt is of."""
    epoch = opt.which_epoch
    for folder in run_and_pretrained(run):
        saved = saved_options(folder)
        flags = argparse.Namespace(**vars(opt) | (OLD_DEFAULTS | saved if folder != own else {}))
        path = weights_file(folder, epoch, "E", flags.ema)
        if is_saved(path):
            return path, flags
        epoch = saved.get("which_epoch", "latest")  # what it started from
    return None, opt


def require_encoder(
    run: Path, opt: argparse.Namespace, own: Path
) -> tuple[Path, argparse.Namespace]:
    """As find_encoder. Raises UserError if there is no encoder."""
    path, flags = find_encoder(run, opt, own)
    if path is None:
        first = run_and_pretrained(run)[-1]
        if first != run and not first.is_dir():
            raise UserError(
                f"{first}: no such folder, and {run} was trained from its weights and "
                "features; put it back, or next to that run under its old name"
            )
        raise UserError(
            f"{run}: no trained encoder ({opt.which_epoch}_net_E.pth); train with "
            "--instance_feat or --label_feat, without --load_features, first"
        )
    weights = next(path.parent.glob("*_net_G.pth"), None)
    if path.parent != own and weights and not saved_options(path.parent):  # of the 2018 code
        is_local = any(name.startswith("model1_") for name in load_file(weights))
        flags.netG = "local" if is_local else "global"
    return path, flags


def cluster_path(folder: Path, name: str) -> Path:
    """A run's cluster file: in its folder, in that of the run whose features it was trained on, or
    else at the path name."""
    candidates = [run / name for run in run_and_pretrained(folder)]
    return next((path for path in [*candidates, Path(name)] if path.is_file()), candidates[0])


def run_styles(folder: Path, opt: argparse.Namespace) -> Styles:
    """The styles of a run, with a warning if they are known to be of another encoder.

    Raises UserError as load_styles does."""
    path = cluster_path(folder, opt.cluster_path)
    encoder, _ = find_encoder(folder, opt, folder)
    if encoder is None and not path.is_file():  # encode_features.py could not make it
        raise UserError(
            f"{path}: no such file, and {folder} has no encoder to make it with; name the file of "
            "the encoder's run (--cluster_path FILE), or read features from PHASE_feat/ (test.py "
            "--load_features; precompute_feature_maps.py with the encoder's --name writes them)"
        )
    styles = load_styles(path, opt.feat_num)
    if is_outdated(path, encoder):
        log_main(
            f"warning: {path} has styles of an encoder other than {encoder}; encode_features.py "
            "with the same --name, --which_epoch and --ema makes its own"
        )
    return styles


def is_outdated(path: Path, encoder: Path | None) -> bool:
    """Whether a file of features is known to be of another encoder, one trained further, say."""
    known, now = recorded_checksum(path), checksum_of(encoder)
    return None not in (known, now) and known != now


def recorded_checksum(path: Path) -> int | None:
    """The checksum of the encoder that made a file of features, if it is known."""
    return _records(path.parent).get(path.name)


def record_encoder(path: Path, checksum: int | None) -> None:
    """Record, in its folder, the checksum of the encoder that made a file of features."""
    records = _records(path.parent) | {path.name: checksum}
    write_text(path.with_name(ENCODERS), json.dumps(records, indent=1) + "\n")


def _records(folder: Path) -> dict[str, int | None]:
    try:
        records = json.loads((folder / ENCODERS).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):  # earlier versions wrote none
        return {}
    return records if isinstance(records, dict) else {}

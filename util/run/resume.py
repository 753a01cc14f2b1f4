"""The position of training, and how a run is saved, resumed, or started from another run's weights.

A resumed run gives the same bits as one that never stopped because, between two steps, everything
that follows depends only on

- the weights, including the averaged ones (--ema), the state of both optimizers and of the gradient
  scaler, and whether the global generator is still fixed (latest_net_*.pth; "model" in
  latest_state.pth),
- the position: epoch and batch. The epoch determines the learning rate
  (Pix2PixHDModel.set_learning_rate) and, with --seed, the order of the scenes
  (data.loader.EpochSampler) and each scene's crop and flip (AlignedDataset), whichever process
  reads it ("position", which also holds the best validation),
- each process's random generators (dropout) and pool of older images ("processes").

snapshot() copies all of it; save() writes the copy, while training continues, as one set, whole or
not at all (util.run.checkpoints); load() reads it and checks that all processes agree;
Visualizer.truncate_after() removes what was logged after the save. tests/test_resume.py compares
every bit; on a GPU this needs --deterministic (docs/reliability.md).
"""

import argparse
import hashlib
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from util import distributed
from util.errors import UserError, out_of_memory
from util.progress import log_main
from util.run.checkpoints import load_file, recover, rename_set, save_set, saved_options
from util.run.flags import NETWORK_FLAGS, OLD_DEFAULTS, TRAINING_FLAGS
from util.setup import random_state, set_random_state

FOLDER_FLAGS = "--checkpoints_dir or --name"  # choose a run's folder
ORDER_FLAGS = "batchSize", "seed", "serial_batches"  # which scenes a batch of an epoch has


@dataclass
class Position:
    """How far training has come: the epoch (from 1), what is done of it, all images so far; and the
    results of validation."""

    epoch: int = 1
    batch: int = 0  # batches done in this epoch
    pictures: int = 0  # images done in this epoch
    step: int = 0  # images since the run began
    newest: int = 0  # images of the newest batch
    best_metric: str = ""  # by which best_net_*.pth is the best
    best_on: str = ""  # the scenes and segmenter that it was measured with; "" in older states
    best: float | None = None  # its value; None before the first validation
    best_epoch: int = 0
    worse: int = 0  # validations since the best

    def check(self, batches: int) -> None:
        """Raise ValueError or TypeError unless training can be at this position, given the number
        of batches in an epoch."""
        counts = self.batch, self.pictures, self.step, self.newest, self.best_epoch, self.worse
        whole = all(isinstance(count, int) and count >= 0 for count in (self.epoch - 1, *counts))
        if not whole or self.batch >= batches or not isinstance(self.best, float | int | None):
            raise ValueError(f"impossible position: {self}")

    def set_metric(self, metric: str, on: str = "") -> str:
        """Choose the metric that decides which validation is the best. The search for the best
        starts over if the metric, or what it is measured on, differs from before. Returns a note if
        there was a best one, else nothing."""
        note = ""
        # older states have the beginning of what it is measured on
        if metric != self.best_metric or not on.startswith(self.best_on):
            if self.best_epoch:
                note = (
                    f"note: the best validation by {self.best_metric} was after epoch "
                    f"{self.best_epoch}; the measure, the scenes or the segmenter have changed, so "
                    "the next one replaces best_net_*.pth"
                )
            self.best_metric, self.best, self.best_epoch, self.worse = metric, None, 0, 0
        self.best_on = on
        return note

    def add_validation(self, value: float, more_is_better: bool) -> bool:
        """Record a validation's value of the metric; returns whether it is the best so far. A value
        that is not finite is never the best; NaN is not worse, either."""
        sign = 1 if more_is_better else -1
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best):
            self.best, self.best_epoch, self.worse = value, self.epoch - 1, 0
            return True
        self.worse += not math.isnan(value)
        return False

    def advance(self, pictures: int) -> None:
        """Count a batch with this number of images."""
        self.batch, self.newest = self.batch + 1, pictures
        self.pictures, self.step = self.pictures + pictures, self.step + pictures

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.pictures = self.epoch + 1, 0, 0

    def passed(self, every: int) -> bool:
        """Whether the newest batch reached a multiple of `every` images."""
        return self.step // every > (self.step - self.newest) // every


def load(model, opt: argparse.Namespace, folder: Path, dataset) -> Position:
    """Load what --continue_train or --load_pretrain asks for; returns where training starts.

    dataset: the AlignedDataset to train on; if its scenes or ORDER_FLAGS changed, the epoch starts
    over.
    opt.load_pretrain and opt.which_epoch keep naming the run whose features this one was trained
    on, even if it is continued or starts from weights of its own. Raises UserError if files are
    damaged or do not fit, or if the processes do not agree.
    """
    if opt.load_pretrain:  # absolute, as opt.json is read from other working directories too
        opt.load_pretrain = os.path.abspath(opt.load_pretrain)
    given = opt.load_pretrain
    pos = _continue_run(model, opt, folder, dataset) if opt.continue_train else None
    if pos is None and opt.load_pretrain:
        fresh = model.load_pretrained_networks(Path(opt.load_pretrain), opt.which_epoch)
        log_main(f"loaded {opt.load_pretrain}, epoch {opt.which_epoch}")
        for line in fresh:
            log_main(f"  starts fresh: {line}")
    if opt.which_epoch != "latest" and not given:
        log_main(f"note: --which_epoch {opt.which_epoch} has no effect without --load_pretrain")
    if pos is None and opt.freeze and not given:
        raise UserError(
            f"--freeze {','.join(opt.freeze)}: {folder} has no weights to keep; give "
            "--load_pretrain DIR"
        )
    starts_from_itself = bool(given) and Path(given).resolve() == folder.resolve()
    if pos is not None or starts_from_itself:
        saved = saved_options(folder)
        if starts_from_itself or not given:
            opt.load_pretrain = saved.get("load_pretrain", "")
        opt.which_epoch = saved.get("which_epoch", "latest")
    pos = pos or Position()
    if opt.continue_train or given:
        _check_agreement(model, pos)
    return pos


def set_aside(folder: Path) -> None:
    """Rename the latest and best weights of an earlier run of this name, its styles and its flags,
    so that they are not taken for the new run's, which may be killed before its first save. Called
    by the main process alone, after everything that may fail at the start."""
    recover(folder)
    renames, kept = {}, []
    for old, new in (("latest", "replaced"), ("best", "replaced_best")):
        if files := [path.name for path in folder.glob(f"{old}_*.pth")]:
            for path in folder.glob(f"{new}_net_*.pth"):
                path.unlink()
            renames |= {name: new + name.removeprefix(old) for name in files}
            kept.append(new)
    if kept:
        # styles from that run's encoder, and its flags
        others = "features*.npy", "object_library.npz", "iter.txt", "opt.json", "opt.txt"
        found = [path.name for pattern in others for path in folder.glob(pattern)]
        renames |= {name: f"replaced_{name}" for name in found}
        rename_set(folder, renames)
        names = " and ".join(kept)
        log_main(
            f"note: this run replaces the one in {folder}, as --continue_train was not given; its "
            f"weights stay available as --which_epoch {names}"
        )
    if epochs := _numbered_networks(folder):
        log_main(f"note: its weights of {_listed(epochs)} stay until training reaches them")


def _continue_run(model, opt: argparse.Namespace, folder: Path, dataset) -> Position | None:
    """Load what the run has saved, if anything."""
    if distributed.is_main():
        recover(folder)
    distributed.wait_for_all()
    if (folder / "latest_state.pth").is_file():
        return _restore_state(model, opt, folder, dataset)
    if (folder / "latest_net_G.pth").is_file():
        model.load_networks(folder)
        epoch = _reference_epoch(folder)
        log_main(f"{folder} has weights but no latest_state.pth: the optimizers start fresh")
        return Position(epoch=epoch, step=(epoch - 1) * len(dataset))
    earlier = ", except by the run it replaced" if any(folder.glob("replaced_*")) else ""
    if not (earlier or opt.load_pretrain) and (epochs := sorted(_numbered_networks(folder))):
        raise UserError(
            f"{folder} has weights of {_listed(epochs)}, but no "
            f"latest_net_G.pth to continue from: copy {epochs[-1]}_net_*.pth to latest_net_*.pth, "
            f"and write the epoch to continue with ({epochs[-1] + 1}) to iter.txt"
        )
    log_main(f"nothing is saved in {folder} yet{earlier}: training starts from the beginning")
    return None


def _restore_state(model, opt: argparse.Namespace, folder: Path, dataset) -> Position:
    """Continue exactly: networks, optimizers, random states, position."""
    path = folder / "latest_state.pth"
    state = load_file(path)
    try:
        pos, processes = Position(**state["position"]), state["processes"]
        saved = OLD_DEFAULTS | saved_options(folder) | state["flags"]  # older states lack some
        old = {flag: saved[flag] for flag in NETWORK_FLAGS + TRAINING_FLAGS}
        names = state.get("names_crc", dataset.names_crc)  # older states have none
        same_scenes = (state["scenes"], names) == (len(dataset), dataset.names_crc)
        same_epoch = same_scenes and all(old[flag] == getattr(opt, flag) for flag in ORDER_FLAGS)
        pos.check(batches=-(-state["scenes"] // old["batchSize"]))
        _compare_flags(folder, old, opt)
        model.load_networks(folder)
        _compare_weights(state.get("checksums", {}), model)  # older states have none
        model.load_training_state(state["model"])
        if distributed.rank() < len(processes):  # else an additional process keeps its own
            mine = processes[distributed.rank()]
            model.pool.load_state_dict(mine["pool"], model.device)
            set_random_state(mine["random"])
    except UserError:
        raise
    except Exception as error:  # a foreign state fails in many ways
        if out_of_memory(error):  # the state is not to blame
            raise
        raise UserError(
            f"{path}: not the state of a training run ({type(error).__name__}: {error}); "
            "restore it from a copy, or start from the weights with --load_pretrain"
        ) from error
    if len(processes) != distributed.world_size():
        log_main(f"note: there were {len(processes)} processes, now {distributed.world_size()}")
    if pos.batch and not same_epoch:
        log_main("note: the data set or the order of its scenes changed: the epoch starts over")
        pos.step, pos.batch, pos.pictures = pos.step - pos.pictures, 0, 0
    elif not same_scenes:
        log_main("note: the data set changed")
    log_main(f"continuing {folder} in epoch {pos.epoch} after {pos.step} images")
    return pos


def _check_agreement(model, pos: Position) -> None:
    """Raise UserError unless all processes loaded the same state: each reads its own disk."""
    if distributed.world_size() == 1:
        return
    networks = [net.state_dict() for net in model.saved_networks().values()]
    digest = hashlib.sha256()
    for leaf in tree_leaves([vars(pos), networks, model.training_state()]):
        if isinstance(leaf, torch.Tensor):
            leaf = leaf.cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(leaf if isinstance(leaf, np.ndarray) else repr(leaf).encode())
    mine = f"epoch {pos.epoch} after {pos.step} images (state {digest.hexdigest()[:8]})"
    distributed.agree(
        mine,
        "would start from different states",
        "let all of them read the same --checkpoints_dir and --load_pretrain (a shared disk, or "
        "copies)",
    )


def _compare_flags(folder: Path, old: dict, opt: argparse.Namespace) -> None:
    def same(old: object, new: object) -> bool:  # names in any order
        names = isinstance(old, list) and all(isinstance(name, str) for name in old)
        return set(old) == set(new) if names else old == new

    changed = {
        flag: f"--{flag} was {value}, now {getattr(opt, flag)}"
        for flag, value in old.items()
        if not same(value, getattr(opt, flag))
    }
    if refused := [text for flag, text in changed.items() if flag in NETWORK_FLAGS]:
        raise UserError(
            f"{folder} trains other networks and cannot be continued: {', '.join(refused)}; "
            "give the old flags, or another --name"
        )
    for text in changed.values():
        log_main(f"note: {text}")


def _compare_weights(old: dict[str, int], model) -> None:
    new = _checksums(model)
    other = [f"latest_net_{name}.pth" for name, value in old.items() if value != new[name]]
    if other:
        log_main(
            f"warning: {' and '.join(other)} {'was' if len(other) == 1 else 'were'} not saved with "
            "latest_state.pth, from which training takes its position and optimizers; to start the "
            "optimizers fresh, in the epoch of iter.txt, delete latest_state.pth"
        )


def _checksums(model) -> dict[str, int]:
    """A number for the weights of each network, the same on every machine and device."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: sum(int(w.view(integers[w.element_size()]).sum()) for w in net.state_dict().values())
        for name, net in model.saved_networks().items()
    }


def _reference_epoch(folder: Path) -> int:
    """The epoch in an iter.txt of the 2018 code (two lines: epoch, images done in it); 1 without
    one. A damaged one is refused: from epoch 1 on, the run's logs would be replaced."""
    path = folder / "iter.txt"
    try:
        return max(1, int(path.read_text().split()[0]))
    except FileNotFoundError:
        return 1
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{path}: does not begin with an epoch; write the one to continue with there"
        ) from error


def snapshot(model, opt: argparse.Namespace, pos: Position, dataset) -> dict[str, object] | None:
    """What a save writes, as copies in main memory: file name -> text, or anything that torch.save
    takes. All processes call it together; all but the main one get None.

    Raises UserError if a weight is not finite.
    """
    networks = {n: net.state_dict() for n, net in model.saved_networks().items()}
    broken = [n for n, ws in networks.items() if not all(w.isfinite().all() for w in ws.values())]
    if broken:
        raise UserError(
            f"step {pos.step}: weights of {' and '.join(broken)} are not finite; the last "
            "checkpoint is kept: lower --lr, or leave --amp out"
        )
    mine = {"random": random_state(), "pool": model.pool.state_dict()}
    processes = distributed.gather(mine, to_main=True)
    if not processes:
        return None
    files: dict[str, object] = {f"latest_net_{name}.pth": net for name, net in networks.items()}
    files["latest_state.pth"] = {
        "position": dict(vars(pos)),
        "flags": {flag: getattr(opt, flag) for flag in NETWORK_FLAGS + TRAINING_FLAGS},
        "scenes": len(dataset),
        "names_crc": dataset.names_crc,
        "checksums": _checksums(model),
        "model": model.training_state(),
        "processes": processes,
    }
    files["iter.txt"] = f"{pos.epoch}\n{pos.pictures}\n"
    return tree_map(_copied, files)


def _copied(value: object) -> object:
    """A copy of a tensor that any machine can load: in main memory, in the usual layout."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def save(files: dict[str, object], folder: Path, names: Sequence[str], keep: int | None) -> bool:
    """Write a snapshot: networks and state as "latest", the networks under `names` as well. Of the
    numbered epochs only the newest `keep` are kept.

    A save that fails leaves the old files, is reported, and returns False.
    """
    position = files["latest_state.pth"]["position"]
    latest = [name for name in files if name.startswith("latest_net_")]
    copies = {name + file.removeprefix("latest"): file for name in names for file in latest}
    try:
        save_set(folder, files, copies)
        if keep is not None:
            _drop_old(folder, keep, ended=position["epoch"] - 1)
    except OSError as error:
        failed = f"saving after {position['step']} images failed ({error.strerror})"
        there = (folder / "latest_net_G.pth").is_file()
        kept = "the last checkpoint is kept" if there else "there is no checkpoint yet"
        log_main(f"warning: {failed}; {kept}")
        return False
    return True


def _drop_old(folder: Path, keep: int, ended: int) -> None:
    """Delete the networks of all but the newest `keep` epochs; latest is never touched. ended: the
    last complete epoch; later ones belong to a run that this one replaces."""
    networks = _numbered_networks(folder)
    epochs = sorted(epoch for epoch in networks if epoch <= ended)
    for epoch in epochs[:-keep]:
        for path in networks[epoch]:
            path.unlink()


def _listed(epochs: Collection[int]) -> str:
    return f"epoch{'s' if len(epochs) > 1 else ''} {', '.join(map(str, sorted(epochs)))}"


def _numbered_networks(folder: Path) -> dict[int, list[Path]]:
    """The files EPOCH_net_*.pth by epoch."""
    networks: dict[int, list[Path]] = {}
    for path in folder.glob("*_net_*.pth"):
        epoch = path.name.split("_")[0]
        if epoch.isdecimal():
            networks.setdefault(int(epoch), []).append(path)
    return networks

"""A run's files: written so that a kill at any instant, or a full disk, leaves the last complete
set; and read again.

A set of files (networks, optimizers, position) is saved through a journal: all are written and
flushed under temporary names, then a marker file lists them, then they are renamed. A kill before
the marker leaves the old set, a kill after it leaves work that recover() finishes. Renaming files
that belong together goes the same way.
"""

import argparse
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from util.errors import UserError, brief, first_line, out_of_memory
from util.files import link_or_copy, write_flushed, write_text
from util.parser import is_range
from util.run.flags import OLD_DEFAULTS

_NEW = ".new"
_MARKER = "save_complete.txt"  # a line for each file to be renamed: old name, tab, new name


def save_set(
    folder: Path, files: Mapping[str, object], copies: Mapping[str, str] | None = None
) -> None:
    """Save files that belong together: name -> text, or anything that torch.save takes.

    copies: additional name -> the name in files whose content it gets. Raises OSError (no space, no
    permission) with the old set untouched.
    """
    recover(folder)
    for abandoned in folder.glob(f"*{_NEW}"):  # left by a killed process
        abandoned.unlink(missing_ok=True)
    names = [*files, *(copies or {})]
    try:
        for name, content in files.items():
            write_flushed(folder / (name + _NEW), _serialized(content))
        for name, source in (copies or {}).items():
            link_or_copy(folder / (source + _NEW), folder / (name + _NEW))
        _flush_names(folder)
        _mark(folder, {name + _NEW: name for name in names})
    except OSError:
        for name in names:
            (folder / (name + _NEW)).unlink(missing_ok=True)
        raise
    recover(folder)  # from the marker on, the new set is the valid one


def _serialized(content: object) -> bytes:
    if isinstance(content, str):
        return content.encode()
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()  # without a copy; getbuffer() on a full disk crashed Python 3.12.1


def rename_set(folder: Path, renames: Mapping[str, str]) -> None:
    """Rename files of a folder, old name -> new name, all together: after a kill the next recover()
    renames the rest."""
    recover(folder)
    _mark(folder, renames)
    recover(folder)


def _mark(folder: Path, renames: Mapping[str, str]) -> None:
    write_text(folder / _MARKER, "\n".join("\t".join(names) for names in renames.items()))


def recover(folder: Path) -> None:
    """Finish a save or a renaming that was interrupted after its marker; otherwise do nothing.

    Only the process that writes to the folder may call this; readers use newest().
    """
    marker = folder / _MARKER
    if not marker.is_file():
        return
    _flush_names(folder)
    for line in marker.read_text(errors="replace").splitlines():
        old, _, new = line.partition("\t")
        plain = all(Path(n).name == n and n not in ("", "..") for n in (old, new))
        if plain and (folder / old).is_file():  # a damaged marker must not lead elsewhere
            os.replace(folder / old, folder / new)
    _flush_names(folder)
    marker.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    """Flush the folder's entries to disk before what follows, in case of a power cut."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest(path: Path) -> Path:
    """The file with path's content: itself, or the new one of a save cut off while renaming."""
    new = path.with_name(path.name + _NEW)
    try:
        renames = (path.parent / _MARKER).read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return path
    return new if f"{new.name}\t{path.name}" in renames and new.is_file() else path


def is_saved(path: Path) -> bool:
    """Whether load_file() finds a file, even while another process is saving."""
    return newest(path).is_file() or path.is_file()


def _open(path: Path) -> BinaryIO:
    with suppress(FileNotFoundError):
        return newest(path).open("rb")
    return path.open("rb")  # the save was completed in between


def require_saved(path: Path) -> None:
    """Raises UserError if load_file() would find no file."""
    if not is_saved(path):
        if not path.parent.is_dir():
            raise UserError(f"{path.parent}: no such run folder; train first, or check its name")
        remedy = "train first, or check the run's name and --which_epoch"
        earlier = path.with_name(path.name.replace("latest", "replaced", 1))
        if path.name == "latest_net_D.pth" and is_saved(path.with_name("latest_net_G.pth")):
            remedy = f"to train with a fresh D, give --load_pretrain {path.parent} instead"
        elif is_saved(earlier):
            remedy = f"{earlier.name}, of the run before, is --which_epoch replaced"
        raise UserError(f"{path}: no such file; {remedy}")


def load_file(path: Path) -> dict:
    """Load a checkpoint file to the CPU without running any code that it may contain.

    Raises UserError if it is missing, damaged or not a checkpoint.
    """
    require_saved(path)
    try:
        with _open(path) as file:
            verify_checksums(file)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows in many ways
        if out_of_memory(error):
            raise
        reason = first_line(error)
        if "weights_only" in str(error):  # torch's message advises running the code
            reason = "damaged, or it holds more than tensors and plain values and could run code"
        raise UserError(
            f"{path}: not a readable checkpoint ({reason}); "
            "restore it from a copy or use another file or epoch"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a state dict")
    return content


def verify_checksums(file: BinaryIO | str) -> None:
    """Raise ValueError if a part of a file that torch has saved is damaged: torch.load and
    torch.jit.load check no checksums. Files in the format before PyTorch 1.6 have none."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")


def options_file(folder: Path, epoch: str | int = "latest") -> Path:
    """The opt.json of a run's weights of an epoch, whether it exists or not."""
    path = folder / "replaced_opt.json"
    is_replaced = f"{epoch}".startswith("replaced") and path.exists()
    return path if is_replaced else folder / "opt.json"


def saved_options(folder: Path, epoch: str | int = "latest") -> dict:
    """The contents of a run's opt.json; empty if there is none. Weights of epoch "replaced" and
    "replaced_best" have that of the run that was replaced. Raises UserError if it is damaged,
    OSError if it cannot be read."""
    path = options_file(folder, epoch)
    if not path.exists():
        return {}
    try:
        options = json.loads(path.read_text())
        if not isinstance(options, dict):
            raise ValueError(f"found {options!r:.40}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not the options of a run ({error}); delete it") from error
    for name, value in options.items():
        if not _is_usable(name, value):
            raise UserError(
                f"{path}: {name} is {value!r}, invalid for --{name}; restore the file from a copy, "
                "or fix it"
            )
    return {**OLD_DEFAULTS, **options}


def _is_usable(name: str, value: object) -> bool:
    """Whether this can be the value of a flag that is read from a run's opt.json alone, without the
    checks of the command line; True for other flags."""
    if name in ("load_pretrain", "which_epoch", "phase"):
        return isinstance(value, str)
    return not name.endswith("_range") or is_range(value)


def run_dir(opt: argparse.Namespace) -> Path:
    """The folder of the run: CHECKPOINTS_DIR/NAME."""
    return Path(opt.checkpoints_dir) / opt.name


def weights_file(folder: Path, epoch: str | int, name: str, ema: float = 0.0) -> Path:
    """The file of a network's weights, or (ema above 0) of their moving average: name "G", "E"."""
    return folder / f"{epoch}_net_{name}{'_ema' if ema else ''}.pth"


def load_network(net: nn.Module, path: Path) -> None:
    """Load weights that must fit exactly. Raises UserError listing the layers that do not."""
    own = net.state_dict()
    state = _network_state(path, own)
    wrong = _shape_mismatches(state, own)
    wrong += [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in own]
    if wrong:
        raise UserError(
            f"{path}: weights of another architecture: {brief(wrong)}; give the flags that it was "
            "trained with (its opt.json or opt.txt lists them)"
        )
    net.load_state_dict(state)


def load_pretrained(
    net: nn.Module, path: Path, adapt: Callable[[dict, dict], dict], differences: str = ""
) -> list[str]:
    """Load a file's weights into a network that may be larger (coarse to fine).

    adapt: turns the file's state dict, given the network's, into one for other classes or channels.
    differences: those of the flags, for the error message.
    Returns the names of the parameters that the file does not have: they keep their values.
    Raises UserError if a parameter has another shape, or the file has layers that the network
    does not: only the coarse generator's last layer, which made its image, may be left over.
    """
    own = net.state_dict()
    state = adapt(_network_state(path, own), own)
    wrong = _shape_mismatches(state, own)
    unknown = list(dict.fromkeys(n.rpartition(".")[0] for n in state if n not in own))
    if len(unknown) > 1 or any(layer.count(".") > 1 for layer in unknown):
        wrong += [f"{layer} is unknown" for layer in unknown]
    if wrong:
        raise UserError(
            f"{path}: does not fit this network: {brief(wrong)}; {differences or 'check the flags'}"
        )
    known = {name: value for name, value in state.items() if name in own}
    if not known:
        raise UserError(f"{path}: none of its layers is in this network, e.g. {next(iter(state))}")
    net.load_state_dict(known, strict=False)
    return [name for name in own if name not in known]


def _network_state(path: Path, own: Mapping) -> dict[str, torch.Tensor]:
    state = load_file(path)
    # checkpoints of DataParallel carry a prefix
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    # before PyTorch 0.4 instance normalization kept statistics too, and batches were not counted
    statistics = (".running_mean", ".running_var", ".num_batches_tracked")
    state = {n: value for n, value in state.items() if n in own or not n.endswith(statistics)}
    for name in own:
        layer, _, last = name.rpartition(".")
        if last == "num_batches_tracked" and f"{layer}.running_mean" in state:
            state.setdefault(name, torch.tensor(0))
    strange = [name for name, value in state.items() if not _is_plain_tensor(value)]
    if strange or not state:
        found = brief(strange) or "nothing"
        raise UserError(f"{path}: expected tensors of real numbers by name, found {found}")
    # converted as on loading: float64 may overflow float32, and float8 has no isfinite
    if broken := [name for name, value in state.items() if not value.float().isfinite().all()]:
        raise UserError(f"{path}: holds NaN or infinite weights in {brief(broken)}; use another")
    return state


def _is_plain_tensor(value: object) -> bool:
    dense = isinstance(value, torch.Tensor) and value.layout == torch.strided
    if not dense or value.is_quantized or value.is_meta:
        return False
    return value.is_floating_point() or value.ndim == 0  # a number of batches is an integer


def _shape_mismatches(state: Mapping, own: Mapping) -> list[str]:
    return [
        f"{name} is {list(state[name].shape)}, expected {list(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]

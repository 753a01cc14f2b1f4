"""Measuring time, memory and operations: two ways in one process, alternating."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.build import AMP_TYPES
from util.errors import UserError
from util.files import make_folder, write_text
from util.parser import Parser, integer

Work = Callable[[], object]

PEAK_SIZE = {"cuda": 8192, "cpu": 1536}  # side of the matrices that matmul_peak multiplies

# flags for training on toy scenes at the quickstart's size
TOY = [
    "--loadSize", "128", "--ngf", "16", "--ndf", "16", "--num_D", "3", "--no_vgg_loss",
    "--n_downsample_global", "1", "--n_layers_D", "2", "--cache", "ram", "--no_html",
    "--gpu_ids", "-1",
]  # fmt: skip


def benchmark_parser(
    doc: str,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    repeat: int | None = 5,
    device: bool = True,
    amp: bool = False,
) -> argparse.ArgumentParser:
    """A parser of --json, --device and --amp and, with these defaults, of --width and --height,
    --batch and --repeat. doc: the module's docstring, whose first paragraph --help shows."""
    parser = Parser(description=doc.split("\n\n")[0].replace("\n", " "))
    add = parser.add_argument
    if device:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        add("--device", type=_device, default=default, help="cpu or cuda")
    add("--json", type=Path, default=None, help="write the results here as well")
    if repeat:
        add("--repeat", type=integer(1), default=repeat, help="measurements of each variant")
    if size:
        add("--width", type=integer(1), default=size[0])
        add("--height", type=integer(1), default=size[1])
    if batch:
        add("--batch", type=integer(1), default=batch)
    if amp:
        add("--amp", default="off", choices=["off", *AMP_TYPES])
    return parser


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{name!r}: expected cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("no CUDA device was found")
    return torch.device(name)


def trained(name: str, checkpoints_dir: Path, flags: Sequence[str], **env: str) -> Path:
    """Train a run with TOY and these flags, unless that is done; returns its folder. env:
    additional environment variables. Raises UserError if the training fails, or if a run with other
    flags has this name."""
    folder = checkpoints_dir / name
    record, asked = folder / "benchmark_flags.txt", " ".join(flags)
    has_weights = (folder / "latest_net_G.pth").is_file()
    if has_weights and record.is_file() and record.read_text() != asked:
        raise UserError(
            f"{folder}: trained with other flags ({record.read_text()}); delete it, or give "
            "another --checkpoints_dir"
        )
    make_folder(folder, "--checkpoints_dir")
    write_text(record, asked)  # first: a kill of this process lets the training save what it has
    command = [sys.executable, "train.py", "--name", name, *TOY, *flags, "--continue_train"]
    command += ["--checkpoints_dir", str(checkpoints_dir)]
    root = Path(__file__).parents[1]
    done = run_to_its_end(command, cwd=root, env=os.environ | env)
    if done.returncode:
        last = "".join(done.stderr.splitlines()[-1:]).removeprefix("error: ")
        raise UserError(f"{name}: {last or done.returncode}")
    return folder


def run_to_its_end(command: list[str], **settings: object) -> subprocess.CompletedProcess:
    """subprocess.run with the output captured, except that Ctrl-C, which reaches the command as
    well, leaves it the time to save: run would kill it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, **settings) as process:
        try:
            output = process.communicate()
        except KeyboardInterrupt:
            process.communicate()
            raise
    return subprocess.CompletedProcess(command, process.returncode, *output)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    ways: Mapping[str, Work], device: torch.device, repeat: int, warm_up: int = 1, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds per call of each way, in turns, so that other load on the machine affects all alike.

    calls: how many calls each turn makes, for work whose calls overlap on a GPU.
    """
    for _ in range(warm_up):
        for work in ways.values():
            work()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, work in ways.items():
            synchronize(device)
            start = time.perf_counter()
            for _ in range(calls):
                work()
            synchronize(device)
            times[name].append((time.perf_counter() - start) / calls)
    return times


def compare(times: dict[str, list[float]]) -> list[dict]:
    """Table rows: of each way's seconds the median, the spread (largest minus smallest, as a share
    of the median), the best, and the ratio of the median to that of the first way."""
    base = statistics.median(next(iter(times.values())))
    rows = []
    for way, seconds in times.items():
        median, best = statistics.median(seconds), min(seconds)
        spread = (max(seconds) - best) / median
        rows.append({"way": way, "median": median, "spread": spread, "best": best})
        rows[-1]["ratio"] = median / base
    return rows


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """A context that counts the bytes saved for backward, now and at the peak, on any device.

    Memory that several operations save counts once; parameters do not count, as they exist anyway.
    Tensors that are detached from every graph are not counted.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        self.peak = 0
        self._free = {p.untyped_storage()._cdata for p in parameters}
        self._kept: weakref.WeakSet[_Kept] = weakref.WeakSet()
        super().__init__(self._pack, lambda kept: kept.tensor)

    def __enter__(self) -> "SavedBytes":
        super().__enter__()
        return self

    @property
    def now(self) -> int:
        """The bytes that graphs hold at the moment."""
        storages = (kept.tensor.untyped_storage() for kept in self._kept)
        sizes = {one._cdata: one.nbytes() for one in storages}  # meta ones have no address
        return sum(size for identity, size in sizes.items() if identity not in self._free)

    def _pack(self, tensor: Tensor) -> "_Kept":
        kept = _Kept(tensor.detach())  # lives as long as the graph holds it
        self._kept.add(kept)
        self.peak = max(self.peak, self.now)
        return kept


@dataclass(eq=False)
class _Kept:
    tensor: Tensor


class AllocatedBytes(TorchDispatchMode):
    """A context that counts the bytes of all tensors that operations in it return, now and at the
    peak, on any device (meta too). What kernels need inside, and fragmentation, are not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = function(*args, **(kwargs or {}))
        for tensor in filter(torch.is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())
        return result

    def _release(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size


def peak_saved_bytes(work: Work, parameters: list[Tensor]) -> int:
    """The most bytes that are saved for backward at any time while work runs."""
    with SavedBytes(parameters) as saved:
        work()
    return saved.peak


def flops(work: Work) -> int:
    """Floating point operations of the matrix products and convolutions in work, backward too."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # the default fails on our step's autograd.grad of a leaf
    with counter:
        work()
    return counter.get_total_flops()


class _NoModules(nullcontext):
    """For FlopCounterMode: only the total, no counts per module."""

    parents = frozenset({"Global"})


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product on this device.

    The faster of torch's product and the same as a 1x1 convolution: on a CPU these come from two
    libraries, one of which may not be optimized for the processor.
    """
    n = PEAK_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    maps, weight = a.view(1, 1, n, n).permute(0, 3, 1, 2), b[..., None, None]  # channels-last
    ways = {"product": lambda: a @ b, "convolution": lambda: F.conv2d(maps, weight)}
    times = alternate(ways, device, repeat=7, warm_up=3)
    return 2 * n**3 / min(min(values) for values in times.values())


def compare_to_peak(
    ways: Mapping[str, Work], operations: Mapping[str, int], given: argparse.Namespace
) -> list[dict]:
    """compare's rows of "baseline", in float32, and "project", in the precision of --amp, with the
    share of the machine's peak that each way reaches."""
    dtypes = {"baseline": torch.float32, "project": AMP_TYPES.get(given.amp, torch.float32)}
    before = {way: matmul_peak(given.device, dtype) for way, dtype in dtypes.items()}
    calls = 10 if given.device.type == "cuda" else 1  # as in training: no waiting between steps
    rows = compare(alternate(ways, given.device, given.repeat, calls=calls))
    for row in rows:
        way = row["way"]
        peak = max(before[way], matmul_peak(given.device, dtypes[way]))
        row["share of peak"] = operations[way] / row["median"] / peak
    return rows


def machine(device: torch.device) -> dict[str, object]:
    """Where and when a figure was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type}, {name}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def report(title: str, rows: list[dict], given: argparse.Namespace, **more: object) -> None:
    """Print rows (dicts with the same keys) as a table, and everything as one line of JSON, with
    given's batch and size if it has them."""
    where = machine(given.device)
    if "width" in given:
        more["size"] = f"{given.width}x{given.height}"
    if "batch" in given:
        more["batch"] = given.batch
    print(f"{title}: " + ", ".join(f"{k} {v}" for k, v in where.items()))
    print(table(rows))
    for name, value in more.items():
        print(f"{name}: {shown(value)}")
    text = json.dumps({"benchmark": title, **where, "rows": rows, **more})
    print(text)
    if given.json:
        make_folder(given.json.parent, "--json")
        write_text(given.json, text + "\n")


def table(rows: list[dict]) -> str:
    """Rows as text in columns, the first one left-aligned."""
    columns: list[list[str]] = []
    for head in rows[0]:
        cells = [head, *(shown(row[head]) for row in rows)]
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if columns else cell.ljust(width) for cell in cells])
    return "\n".join(map("  ".join, zip(*columns)))


def shown(value: object) -> str:
    """A float with four digits; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

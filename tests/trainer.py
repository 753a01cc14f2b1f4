"""train.py in processes that start at once: forked from one that has imported torch already.

What runs is train.py's own main with its own command line; only the seconds of importing are
saved, so that tests can kill and continue training dozens of times.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from commands import redirect, start_fork
from conftest import ROOT, TINY
from PIL import Image


class Training:
    """A running train.py with tiny networks. prepare() is called in its process beforehand; env:
    additional environment variables."""

    def __init__(
        self,
        folder: Path,
        *flags: object,
        prepare: Callable[[], None] | None = None,
        out: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.out = out or folder.parent / f"{folder.name}.out"
        argv = ["train.py", *TINY, "--checkpoints_dir", folder.parent, "--name", folder.name]
        argv = [str(arg) for arg in [*argv, *flags]]
        self.process = start_fork(_train, argv, self.out, prepare, env or {})

    def end(self, timeout: float = 120) -> int:
        """Wait; the exit status, or minus the signal that killed it."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"still training after {timeout} s: {self.output()}")
        return self.process.exitcode

    def output(self) -> str:
        """What it has printed so far, on stdout and stderr."""
        return self.out.read_text() if self.out.exists() else ""

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Wait until it has printed this."""
        until = time.monotonic() + timeout
        while text not in self.output():
            if time.monotonic() > until or not self.process.is_alive():
                raise AssertionError(f"never printed {text!r}: {self.output()}")
            time.sleep(0.005)


def _train(
    argv: list[str], out: Path, prepare: Callable[[], None] | None, env: dict[str, str]
) -> None:
    redirect(out, out)
    os.chdir(ROOT)
    os.environ.update(env)
    sys.argv = argv
    torch.set_num_threads(1)
    import train
    import util.run.page
    from util.errors import run

    # drawing takes as long as all steps together; tests/test_visualizer.py checks real curves
    util.run.page.save_curves = lambda path, *_, **__: Image.new("L", (1, 1)).save(path)
    if prepare:
        prepare()
    run(train.main)


def train(folder: Path, *flags: object, prepare: Callable[[], None] | None = None) -> str:
    """Train to the end; what was printed."""
    training = Training(folder, *flags, prepare=prepare)
    status = training.end()
    assert status == 0, training.output()
    return training.output()


def outcome(folder: Path) -> dict[str, object]:
    """All that two equal runs must have in common: every saved number, the logs, the images."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("*.pth")):
        found[path.name] = _plain(torch.load(path, weights_only=True))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if k not in ("time", "data_time")} for row in rows]
    found["metrics.jsonl"] = timeless
    found["iter.txt"] = (folder / "iter.txt").read_text()
    for path in sorted((folder / "web" / "images").glob("[!.]*.png")):
        found[path.name] = path.read_bytes()
    return found


def _plain(value: object) -> object:
    """Tensors as (shape, bytes), so that == compares every bit, NaN and -0 too."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def assert_same(one: Path, other: Path, ignore: tuple[str, ...] = ()) -> None:
    """Two runs ended in the same files, bit for bit. ignore: keys of the state to leave out."""
    first, second = outcome(one), outcome(other)
    for found in (first, second):
        for key in ignore:
            with contextlib.suppress(KeyError):
                del found["latest_state.pth"][key]
    assert first.keys() == second.keys()
    different = [name for name in first if first[name] != second[name]]
    assert not different, f"{one} and {other} differ in {different}"

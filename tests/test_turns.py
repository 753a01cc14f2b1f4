"""Training runs that share one CPU: turns, and how long idle threads hold a core."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from util.run import turns
from util.run.turns import Turn

CPU = torch.device("cpu")
_fork = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def all_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As train.py runs by default, with the test's own lock file."""
    monkeypatch.setattr(turns, "_uses_all_cores", lambda: True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def step_often(steps: int, seconds: float, log: Path, start_together) -> None:
    turn = Turn(CPU)
    start_together.wait(60)
    for _ in range(steps):
        with turn:
            start = time.monotonic()
            time.sleep(seconds)
            end = time.monotonic()
        with log.open("a") as file:
            file.write(f"{os.getpid()} {start} {end}\n")


def test_steps_of_two_training_runs_never_overlap(tmp_path: Path) -> None:
    logs = [tmp_path / "first", tmp_path / "second"]
    barrier = _fork.Barrier(2)
    both = [_fork.Process(target=step_often, args=(20, 0.03, log, barrier)) for log in logs]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    steps = [line.split() for log in logs for line in log.read_text().splitlines()]
    steps = sorted((float(start), float(end), who) for who, start, end in steps)
    assert len(steps) == 40
    assert all(before[1] <= after[0] for before, after in pairwise(steps))
    owners = [who for _, _, who in steps]
    together = owners[owners.index(owners[-1]) :] if owners[0] != owners[-1] else owners
    changes = sum(a != b for a, b in pairwise(together))
    assert changes >= 10  # none gets many turns in a row while the other waits


def hold(ready, release) -> None:
    with Turn(CPU):
        ready.set()
        release.wait(60)


def test_nobody_waits_long_for_a_suspended_training_run() -> None:
    ready, release = _fork.Event(), _fork.Event()
    other = _fork.Process(target=hold, args=(ready, release))
    other.start()
    assert ready.wait(60)
    turn = Turn(CPU)
    turn._seconds = 0.05  # of its steps so far
    start = time.monotonic()
    with turn:
        waited = time.monotonic() - start
    release.set()
    other.join(60)
    assert 0.15 < waited < 5


def test_training_with_fewer_threads_than_cores_takes_no_turns(monkeypatch) -> None:
    monkeypatch.setattr(turns, "_uses_all_cores", lambda: False)
    assert Turn(CPU)._file is None
    monkeypatch.undo()
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    assert turns._uses_all_cores() == (threads > 1 and 2 * threads >= cores)


@pytest.mark.parametrize(("given", "expected"), [(None, "1000"), ("7", "7")])
def test_idle_threads_hold_a_core_only_briefly(given: str | None, expected: str) -> None:
    """train.py sets it before torch is imported, and a user's own value stays."""
    env = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    env |= {} if given is None else {"GOMP_SPINCOUNT": given}
    code = (
        "import sys, os\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': print(os.environ.get('GOMP_SPINCOUNT')); sys.exit()\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import train\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True)
    assert done.stdout.decode().strip() == expected, done.stderr

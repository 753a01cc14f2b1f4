"""Threads in the background, and what they must not take from the main thread."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from util.parallel import parallel

ROOT = Path(__file__).parents[1]

ORPHANS = """
import os, signal, sys, time
from util.parallel import parallel
def work(seconds):
    time.sleep(seconds)
if __name__ == "__main__":
    for _ in parallel(work, [0, 0, 0, 60, 60], 2, "waiting"):
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
"""
ALONE = "import torch; print(torch.get_num_threads())"
WITH_OTHERS = """
import torch
from util.parallel import Writer, background
writer = Writer()
found = [writer.submit(torch.get_num_threads).result()]
with background() as submit:
    found += [submit(torch.get_num_threads).result() for _ in range(2)]
print(*found, torch.get_num_threads())
"""


def output_of(program: str) -> list[str]:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.thorough
def test_torch_has_one_thread_in_the_background_and_all_in_the_foreground() -> None:
    """Otherwise OpenMP has more threads than cores, which slows training down for good."""
    assert output_of(WITH_OTHERS) == ["1", "1", "1", *output_of(ALONE)]


def test_no_more_processes_are_started_than_there_are_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count: int, **_: object) -> None:
            counts.append(count)
            super().__init__(count)

    monkeypatch.setattr("util.parallel.ProcessPoolExecutor", Pool)
    assert list(parallel(abs, [-1, -2], 500, "counting")) == [1, 2]
    assert list(parallel(abs, [], 500, "counting")) == []
    assert counts == [2]


@pytest.mark.thorough
def test_no_process_outlives_its_killed_parent(tmp_path: Path) -> None:
    program = tmp_path / "orphans.py"
    program.write_text(ORPHANS)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    # it returns when all of them have closed stdout
    done = subprocess.run([sys.executable, program], env=env, stdout=subprocess.PIPE, timeout=50)
    assert done.returncode == -signal.SIGKILL

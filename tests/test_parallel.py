"""Threads in the background, and what they must not take from the main thread."""

import subprocess
import sys
from pathlib import Path

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
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_torch_has_one_thread_in_the_background_and_all_in_front() -> None:
    """Else OpenMP would have more threads than cores, and the training slows down for good."""
    assert output_of(WITH_OTHERS) == ["1", "1", "1", *output_of(ALONE)]

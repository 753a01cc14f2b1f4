"""Threads in the background, and what they must not take from the main thread."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import torch
from util.parallel import Writer, in_threads
writer = Writer()
found = [writer.submit(torch.get_num_threads).result()]
found += in_threads(torch.get_num_threads, [(), ()])
print(*found, torch.get_num_threads())
"""


def test_torch_has_one_thread_in_the_background_and_all_in_front() -> None:
    """Else OpenMP would have more threads than cores, and the training slows down for good."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "3"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1", "1", "3"], done.stderr

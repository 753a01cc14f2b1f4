"""Training runs side by side on one CPU take turns, step by step.

Two runs that both use every core slow each other down 4 to 15 times: a step has thousands of short
parallel loops, each of which ends with its last thread, and a thread whose core is taken by the
other run keeps all others waiting for the scheduler. In turns, each takes only twice its time.
`python -m benchmarks.side_by_side` measures it.
"""

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch

from util import distributed
from util.parallel import available_cores

try:
    import fcntl
except ImportError:  # Windows: training runs do not take turns
    fcntl = None

_QUEUE, _TURN = 0, 1  # bytes of the lock file


class Turn:
    """A context for one step: on a CPU, no other training of this user runs a step meanwhile.

    Runs with fewer threads than cores (OMP_NUM_THREADS), with several processes or on a GPU do not
    wait. No run waits longer than four of its own steps: the other may be suspended, or its steps
    may be far longer.
    """

    MAX_WAIT = 4  # steps of its own

    def __init__(self, device: torch.device) -> None:
        self._file = None
        self._seconds = 1.0  # of a step
        if fcntl and device.type == "cpu" and _uses_all_cores() and distributed.world_size() == 1:
            with suppress(OSError):  # no place for temporary files: no turns
                path = Path(tempfile.gettempdir()) / f"pix2pixHD-turns-{os.getuid()}.lock"
                self._file = path.open("w")

    def __enter__(self) -> None:
        if self._file:
            # the training that waits holds the queue, so that no other gets two turns before it
            until = time.monotonic() + self.MAX_WAIT * self._seconds
            if self._lock(_QUEUE, until):
                self._lock(_TURN, until)
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _QUEUE)
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds = time.monotonic() - self._start
        if self._file:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _TURN)

    def _lock(self, byte: int, until: float) -> bool:
        """Try to get the lock until that time; returns whether it did."""
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                return True
            except OSError:
                if time.monotonic() > until:
                    return False
                time.sleep(0.0005)


def _uses_all_cores() -> bool:
    """torch starts a thread for each physical core, of which there may be half as many."""
    return torch.get_num_threads() > 1 and 2 * torch.get_num_threads() >= available_cores()

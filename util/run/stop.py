"""How a run ends when a person or a scheduler asks for it. Does not import torch, which takes
seconds: train.py calls exit_on_signals before it imports anything else.
"""

import multiprocessing
import os
import signal
import time
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what schedulers send
PARENT = os.getppid()  # what started this process; it may be gone before torch is imported


def exit_on_signals() -> None:
    """Let SIGINT and SIGTERM end the program with status 128 + their number and no traceback.

    For the time before there is anything to save. Signals that were blocked arrive now.
    """
    for number in SIGNALS:
        signal.signal(number, lambda number, _: leave(128 + number))
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def leave(status: int) -> NoReturn:
    """End the program and its data-loading processes at once: an exception would not get through
    torch's C++ code, nor end threads that are inside collectives."""
    for reader in multiprocessing.active_children():
        reader.kill()
    os._exit(status)


class Stop:
    """Once created, records SIGINT and SIGTERM in `signal` (0: none yet) instead of exiting.

    One Ctrl-C may arrive several times: from the terminal, from the launcher, from torchrun. So
    repeats are ignored for REPEATS seconds; a Ctrl-C after that ends the program at once.
    """

    REPEATS = 5.0

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() > self._since + self.REPEATS:
            raise KeyboardInterrupt

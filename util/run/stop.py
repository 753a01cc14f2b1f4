"""Ending a run between two steps when a person or a scheduler asks for it."""

import signal

import torch

from util import distributed


class Stop:
    """From its making on, SIGTERM and Ctrl-C are noted instead of obeyed at once.

    A second Ctrl-C ends the program on the spot.
    """

    def __init__(self) -> None:
        self._signal = 0
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._signal = number

    def asked(self) -> bool:
        """Whether any process was asked to stop; all processes call this together."""
        if distributed.world() > 1:
            highest = distributed.maximum(torch.tensor(self._signal))
            self._signal = int(highest)
        return self._signal > 0

    @property
    def status(self) -> int:
        """The exit status that tells a shell about the signal, so that scripts end too."""
        return 128 + self._signal

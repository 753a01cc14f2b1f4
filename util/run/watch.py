"""Watching a training run: losses that are not finite, a collapsed discriminator, saturation."""

import time

import torch
from torch import Tensor

from util import distributed
from util.errors import UserError, brief

COLLAPSED = (
    "warning: the discriminator's loss has been near 0 for a long time, so G learns little from "
    "it; try a lower --lr, more data or a smaller --n_layers_D (docs/validation.md)"
)
SATURATED = (
    "warning: nearly every pixel of the generated images is at its limit: G is saturated; try a "
    "lower --lr, starting from an earlier epoch (docs/validation.md)"
)


class Watch:
    """Looks for values that are not finite, and for signs of collapse, saturation and memorizing.

    What add() records stays on the device until check(), so that add() never waits for a GPU.
    """

    WARN_AFTER = 20  # logged losses in a row before a warning
    GAP = 1.5  # ratio of the L1 of validation to that of training, before a warning

    def __init__(self) -> None:
        self._training_l1: list[float] = []  # of logged steps since the last validation
        self._warned_of_gap = False
        self._steps: list[tuple[Tensor, int, dict[str, Tensor], list[str]]] = []
        self._in_a_row = {COLLAPSED: 0, SATURATED: 0}  # logged losses

    def add(self, finite: Tensor, step: int, losses: dict[str, Tensor], paths: list[str]) -> None:
        """Record a step: finite is a scalar bool on any device."""
        self._steps.append((finite, step, losses, paths))

    def check(self) -> None:
        """Raise UserError naming the first bad step since the last check."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        flags = torch.stack([finite for finite, *_ in steps]).tolist()
        if all(flags):
            return
        _, step, losses, paths = steps[flags.index(False)]
        if distributed.world_size() > 1 and all(value.isfinite() for value in losses.values()):
            time.sleep(2)  # the process whose loss it is ends this one when it reports it
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
        raise UserError(
            f"step {step}: a loss or gradient is not finite ({values}) in {brief(paths)}; "
            "the last checkpoint is kept: check these files, lower --lr or leave --amp out"
        )

    def warnings(self, losses: dict[str, float], image: Tensor, real: Tensor) -> list[str]:
        """Warnings about logged losses and about generated images in [-1, 1] compared with their
        photographs; each is given once."""
        self._training_l1.append((image - real).abs().mean().item() * 127.5)
        collapsed = losses["D_real"] + losses["D_fake"] < 0.02  # with least squares
        saturated = (image.abs() > 0.999).float().mean().item() > 0.9
        found = []
        for warning, wrong in ((COLLAPSED, collapsed), (SATURATED, saturated)):
            count = self._in_a_row[warning]
            if count < self.WARN_AFTER:  # else it was given already
                self._in_a_row[warning] = count + 1 if wrong else 0
                if self._in_a_row[warning] == self.WARN_AFTER:
                    found.append(warning)
        return found

    def gap_warning(self, validation_l1: float) -> str | None:
        """A warning, given once, if the validation images differ from their photographs much more
        than the training images since the last validation; in grey levels of 255."""
        values, self._training_l1 = self._training_l1, []
        if len(values) < 5 or self._warned_of_gap:
            return None
        training = sum(values) / len(values)
        if validation_l1 < self.GAP * training:
            return None
        self._warned_of_gap = True
        return (
            f"warning: the validation images differ by {validation_l1:.1f} grey levels from their "
            f"photographs, the training images by {training:.1f}: the training scenes are being "
            "memorized; more scenes or --augment help (docs/validation.md)"
        )

"""Watching a training run: losses that are not finite, a collapsed discriminator, saturation."""

import torch
from torch import Tensor

from util.errors import UserError, brief


class NonFinite(UserError):
    """A loss or gradient was NaN or infinite."""


COLLAPSED = (
    "warning: the discriminator's loss has been near 0 for long, so that G learns little from it; "
    "try a lower --lr or another --num_D (docs/validation.md)"
)
SATURATED = (
    "warning: nearly every pixel of the generated images is at its limit: G is saturated; try a "
    "lower --lr, starting from an earlier epoch (docs/validation.md)"
)


class Watch:
    """Collects for each step whether all was finite; check() looks at it.

    The flags stay on the device, so that add() never waits for a GPU.
    """

    PATIENCE = 20  # logged losses in a row before a warning
    GAP = 1.5  # validation's difference to the photographs, in training's, before a warning

    def __init__(self) -> None:
        self._training_l1: list[float] = []  # of logged steps since the last validation
        self._told_of_gap = False
        self._steps: list[tuple[Tensor, int, dict[str, Tensor], list[str]]] = []
        self._in_a_row = {COLLAPSED: 0, SATURATED: 0}  # logged losses

    def add(self, finite: Tensor, step: int, losses: dict[str, Tensor], paths: list[str]) -> None:
        """Note a step: finite is a scalar bool on any device."""
        self._steps.append((finite, step, losses, paths))

    def check(self) -> None:
        """Raise NonFinite naming the first bad step since the last check."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        flags = torch.stack([finite for finite, *_ in steps]).tolist()
        for good, (_, step, losses, paths) in zip(flags, steps):
            if not good:
                values = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
                raise NonFinite(
                    f"step {step}: a loss or gradient is not finite ({values}) in {brief(paths)}; "
                    "the last checkpoint is kept: look at these files, lower --lr, or leave --amp"
                )

    def warnings(self, losses: dict[str, float], image: Tensor, real: Tensor) -> list[str]:
        """What looks wrong in logged losses and generated images in [-1, 1], beside their
        photographs; each comes once."""
        self._training_l1.append((image - real).abs().mean().item() * 127.5)
        collapsed = losses["D_real"] + losses["D_fake"] < 0.02  # of least squares
        saturated = (image.abs() > 0.999).float().mean().item() > 0.9
        found = []
        for warning, wrong in ((COLLAPSED, collapsed), (SATURATED, saturated)):
            count = self._in_a_row[warning]
            if count < self.PATIENCE:  # else it was given
                self._in_a_row[warning] = count + 1 if wrong else 0
                found += [warning] if self._in_a_row[warning] == self.PATIENCE else []
        return found

    def gap_warning(self, validation_l1: float) -> str | None:
        """A warning, once, if the images of validation differ from their photographs much more than
        those of training since the last one; in grey levels of 255."""
        values, self._training_l1 = self._training_l1, []
        if len(values) < 5 or self._told_of_gap:
            return None
        training = sum(values) / len(values)
        if validation_l1 < self.GAP * training:
            return None
        self._told_of_gap = True
        return (
            f"warning: the validation images differ by {validation_l1:.1f} grey levels from their "
            f"photographs, those of training by {training:.1f}: the training scenes are being "
            "learnt by heart; more scenes or --augment help (docs/validation.md)"
        )

"""Watching a training run: losses that are not finite, a collapsed discriminator, saturation."""

import torch
from torch import Tensor

from util.errors import UserError, brief


class NonFinite(UserError):
    """A loss or gradient was NaN or infinite."""


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
        self._collapsed = self._saturated = 0

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
        self._collapsed = _count(self._collapsed, losses["D_real"] + losses["D_fake"] < 0.02)
        saturated = (image.abs() > 0.999).float().mean().item() > 0.9
        self._saturated = _count(self._saturated, saturated)
        found = []
        if self._collapsed == self.PATIENCE:
            found.append(
                "warning: the discriminator's loss has been near 0 for long, so that G learns "
                "little from it; try a lower --lr or another --num_D (docs/validation.md)"
            )
        if self._saturated == self.PATIENCE:
            found.append(
                "warning: nearly every pixel of the generated images is at its limit: G is "
                "saturated; try a lower --lr, starting from an earlier epoch (docs/validation.md)"
            )
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


def _count(so_far: int, again: bool) -> int:
    """Times in a row, this one included; it no longer starts over after a warning."""
    if so_far >= Watch.PATIENCE:
        return so_far + 1
    return so_far + 1 if again else 0

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

    def __init__(self) -> None:
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

    def warnings(self, losses: dict[str, float], image: Tensor) -> list[str]:
        """What looks wrong in logged losses and a generated image in [-1, 1]; each comes once."""
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


def _count(so_far: int, again: bool) -> int:
    """Times in a row, this one included; it no longer starts over after a warning."""
    if so_far >= Watch.PATIENCE:
        return so_far + 1
    return so_far + 1 if again else 0

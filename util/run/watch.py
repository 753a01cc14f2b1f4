"""Watching a training run: losses that are no numbers, discriminators that have collapsed."""

import torch
from torch import Tensor

from util.errors import UserError, brief


class NonFinite(UserError):
    """A loss or gradient was NaN or infinite."""


class Watch:
    """Collects, step by step, whether all was finite; looks at it only when asked.

    The flags stay on the device, so that adding one never makes a GPU wait.
    """

    PATIENCE = 20  # looks in a row before a warning

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

    def warnings(self, losses: dict[str, float], picture: Tensor) -> list[str]:
        """What looks wrong in printed losses and a picture in [-1, 1]; each is said once."""
        self._collapsed = _count(self._collapsed, losses["D_real"] + losses["D_fake"] < 0.02)
        saturated = (picture.abs() > 0.999).float().mean().item() > 0.9
        self._saturated = _count(self._saturated, saturated)
        found = []
        if self._collapsed == self.PATIENCE:
            found.append(
                "warning: the discriminator's loss has been near 0 for long: it has won, and G "
                "learns little from it; try a lower --lr or another --num_D"
            )
        if self._saturated == self.PATIENCE:
            found.append(
                "warning: nearly every pixel of the pictures is at its limit: G is saturated; "
                "try a lower --lr, starting from an earlier epoch"
            )
        return found


def _count(so_far: int, again: bool) -> int:
    """How often in a row; once warned, for good."""
    if so_far >= Watch.PATIENCE:
        return so_far + 1
    return so_far + 1 if again else 0

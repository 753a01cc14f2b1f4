"""Convolutions whose channels are not what tensor cores want.

In half precision, cudnn's fastest kernels take maps whose channels are multiples of 8. The paper's
networks see 36 or 39 channels and give 3 or 1, so their first and last convolutions would run
slower. With --compile they compute with further channels of zeros; parameters, and with them
checkpoints, keep their shapes. Without it the copies are kernels of their own, and a step
on an H100 was not faster for them (docs/performance.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

MULTIPLE = 8  # channels: 16 bytes in half precision
DEVICES = ("cuda",)
HALF = (torch.bfloat16, torch.float16)


class Conv2d(nn.Conv2d):
    """torch's own (with a bias, without groups); compiled for a GPU, with aligned channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        more_in, more_out = -self.in_channels % MULTIPLE, -self.out_channels % MULTIPLE
        precision = half_precision(x) if is_compiling() else None
        if precision is None or not (more_in or more_out):
            return super().forward(x)
        x = x.to(precision)  # before it is copied
        if more_in:
            x = F.pad(x, (0, 0, 0, 0, 0, more_in))
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
        bias = F.pad(self.bias, (0, more_out))
        y = F.conv2d(x, weight, bias, self.stride, self.padding)
        return y[:, : self.out_channels]


def half_precision(x: Tensor) -> torch.dtype | None:
    """The half precision in which a GPU would convolve x, by autocast or as x is; else None."""
    device = x.device.type
    if device not in DEVICES:
        return None
    by_autocast = torch.is_autocast_enabled(device)
    precision = torch.get_autocast_dtype(device) if by_autocast else x.dtype
    return precision if precision in HALF else None

"""Convolutions whose channel counts do not suit tensor cores.

In half precision, cudnn's fastest kernels need channel counts that are multiples of 8. The paper's
networks have 36 or 39 input channels and 3 or 1 output channels, so their first and last
convolutions would run slower. With --compile they are padded with channels of zeros; parameters,
and thus checkpoints, keep their shapes. Without it, the padding would run as separate kernels, and
a step on an H100 was not faster for it (docs/performance.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling

MULTIPLE = 8  # channels: 16 bytes in half precision
DEVICES = ("cuda",)
HALF = (torch.bfloat16, torch.float16)


class Conv2d(nn.Conv2d):
    """torch's Conv2d (with a bias, without groups), with aligned channels if compiled for a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')."""
        extra_in, extra_out = -self.in_channels % MULTIPLE, -self.out_channels % MULTIPLE
        precision = half_precision(x) if is_compiling() else None
        if precision is None or not (extra_in or extra_out):
            return super().forward(x)
        x = x.to(precision)  # before padding copies it
        if extra_in:
            x = F.pad(x, (0, 0, 0, 0, 0, extra_in))
        weight = F.pad(self.weight, (0, 0, 0, 0, 0, extra_in, 0, extra_out))
        bias = F.pad(self.bias, (0, extra_out))
        y = F.conv2d(x, weight, bias, self.stride, self.padding)
        return y[:, : self.out_channels]


def half_precision(x: Tensor) -> torch.dtype | None:
    """The half-precision type (autocast's or x's) in which a GPU would convolve x, else None."""
    device = x.device.type
    if device not in DEVICES:
        return None
    by_autocast = torch.is_autocast_enabled(device)
    precision = torch.get_autocast_dtype(device) if by_autocast else x.dtype
    return precision if precision in HALF else None

"""Padding that keeps the memory layout, precise and fast instance averages, weight initialization.

Padding on GPUs: torch copies channels-last maps to another layout and back; here they stay.

Instance averages (paper, section 3.4): the time does not depend on the number of instances, and is
200 times shorter than that of a loop over them at 2048x1024 (docs/performance.md).

Normalization and upsampling are in models/normalization.py and models/upsampling.py.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.upsampling import SubpixelConv2d

Net = TypeVar("Net", bound=nn.Module)


def is_channels_last(x: Tensor) -> bool:
    """Whether (B, C, H, W) is stored as (B, H, W, C), and not contiguous in the usual order too."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


# -- Initialization ----------------------------------------------------------------------------


def init_weights(net: Net) -> Net:
    """Sample the weights of convolutions from N(0, 0.02), and of batch norms from N(1, 0.02)."""
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if isinstance(layer, SubpixelConv2d):
                layer.init_as_nearest()
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)
    return net


# -- Padding ----------------------------------------------------------------------------------


class ReflectionPad2d(nn.ReflectionPad2d):
    """torch's ReflectionPad2d, but on GPUs channels-last maps stay so, and --deterministic works:
    torch's own CUDA kernels have no deterministic backward."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + top + bottom, W + left + right) in the same layout."""
        if x.is_cuda and torch.are_deterministic_algorithms_enabled():
            return reflect_by_index(x, self.padding)
        if x.is_cuda and is_channels_last(x) and not torch.compiler.is_compiling():
            return reflect_channels_last(x, self.padding)
        return super().forward(x)


def reflect_by_index(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Reflection padding (left, right, top, bottom) of (B, C, H, W) by choosing rows and columns,
    which has a deterministic backward."""
    left, right, top, bottom = padding
    for dim, before, after in ((2, top, bottom), (3, left, right)):
        last = x.shape[dim] - 1
        places = torch.arange(-before, last + after + 1, device=x.device).abs()
        x = x.index_select(dim, last - (last - places).abs())
    return x


def reflect_channels_last(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Reflection padding (left, right, top, bottom) of (B, C, H, W) in channels-last layout: as
    volumes (H, W, C) that are contiguous, padded in two of three dimensions."""
    volumes = F.pad(x.permute(0, 2, 3, 1), (0, 0, *padding), mode="reflect")
    return volumes.permute(0, 3, 1, 2)


# -- Instance averages ------------------------------------------------------------------------


def instance_average(features: Tensor, inst: Tensor) -> Tensor:
    """Replace each feature by its mean over the instance, in each image of the batch.

    features (B, C, H, W) float, inst (B, 1, H, W) integer -> (B, C, H, W), float32 at least:
    half precision, also under autocast, is averaged and returned in float32. Differentiable any
    number of times.
    """
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    segments, count = _segments(inst)
    return _InstanceAverage.apply(features, segments, count)


def _segments(inst: Tensor) -> tuple[Tensor, int]:
    """Number the instances of each image: (B, 1, H, W) -> (B, H*W) int64, all below a count."""
    ids = inst.flatten(1)  # (B, H*W)
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = ids.aminmax()
        if low >= 0 and high <= 0xFFFF:  # 16-bit files: the ids themselves are small enough
            return ids.long(), int(high) + 1
    # Rank the ids: works for any integers, and copies no value to the host, so a GPU never waits.
    sorted_ids, order = ids.sort(dim=1)
    steps = torch.zeros_like(order)
    steps[:, 1:] = sorted_ids[:, 1:] != sorted_ids[:, :-1]
    return torch.empty_like(order).scatter_(1, order, steps.cumsum(1)), ids.shape[1]


class _InstanceAverage(torch.autograd.Function):
    """Averaging is a symmetric projection, so its gradient is the average of the gradient."""

    @staticmethod
    def forward(ctx, features: Tensor, segments: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(segments)
        ctx.count = count
        batch, channels = features.shape[:2]
        index = segments[:, None].expand(-1, channels, -1)  # (B, C, H*W)
        # float64 (which Macs' GPUs lack): adding millions of float32 numbers into one loses the
        # fourth digit
        dtype = torch.float32 if features.device.type == "mps" else torch.float64
        sums = features.new_zeros(batch, channels, count, dtype=dtype)
        sums.scatter_add_(2, index, features.flatten(2).to(dtype))
        areas = features.new_zeros(batch, count, dtype=dtype)  # float32 counts only to 2^24
        ones = features.new_ones(1, 1, dtype=dtype)
        areas.scatter_add_(1, segments, ones.expand(segments.shape))
        means = (sums / areas.clamp(min=1)[:, None]).to(features.dtype)
        return means.gather(2, index).view_as(features)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (segments,) = ctx.saved_tensors
        return _InstanceAverage.apply(grad, segments, ctx.count), None, None

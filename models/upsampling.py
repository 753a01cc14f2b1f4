"""Upsampling layers (--upsample), each of them one transposed convolution.

Interpolation and convolution in one step take half the arithmetic of two, and have the paper's keys
and shapes in checkpoints; "icnr" is initialized as such a layer (docs/recipes.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INTERPOLATION = {"nearest": (1.0, 1.0), "bilinear": (0.5, 1.0, 0.5)}  # along each axis
UPSAMPLE = ["transpose", *INTERPOLATION, "icnr"]  # of --upsample


def interpolation_kernel(interpolation: str) -> Tensor:
    """The kernel that spreads a pixel, (1, 1, k, k): k = 2 for "nearest", 3 for "bilinear"."""
    line = torch.tensor(INTERPOLATION[interpolation])
    return torch.outer(line, line)[None, None]


def with_interpolation(weight: Tensor, kernel: Tensor) -> Tensor:
    """The weights (in, out, 3, 3) of a convolution after an interpolation as those of the
    transposed convolution that does both: (in, out, 2 + k, 2 + k)."""
    maps = weight.flatten(0, 1)[:, None]
    wide = F.conv2d(maps, kernel.to(weight), padding=kernel.shape[-1] - 1)
    return wide.squeeze(1).unflatten(0, weight.shape[:2])


class UpsampleConv2d(nn.ConvTranspose2d):
    """Interpolation to twice the size, then a 3x3 convolution: (B, C, H, W) -> (B, C', 2H, 2W).

    The weights have the shape of the paper's 3x3 transposed convolution. There the four pixels of a
    2x2 block get 1, 2, 2 and 4 of the weights, which shows as a grid (Odena et al.,
    "Deconvolution and Checkerboard Artifacts", 2016); here each weight reaches all four.
    """

    def __init__(self, in_nc: int, out_nc: int, interpolation: str) -> None:
        super().__init__(in_nc, out_nc, kernel_size=3, stride=2)
        self.register_buffer("kernel", interpolation_kernel(interpolation), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = with_interpolation(self.weight, self.kernel)
        padding, odd = (weight.shape[-1] - 1) // 2, weight.shape[-1] % 2
        return F.conv_transpose2d(x, weight, self.bias, 2, padding, output_padding=odd)


class SubpixelConv2d(nn.ConvTranspose2d):
    """A 4x4 transposed convolution: (B, C, H, W) -> (B, C', 2H, 2W).

    Each of the four pixels of a 2x2 block has its own four weights. They are initialized as nearest
    neighbour upsampling and a 3x3 convolution (ICNR: Aitken et al., "Checkerboard artifact free
    sub-pixel convolution", 2017): without a grid, but free to learn edges between the four, which
    interpolation blurs.
    """

    def __init__(self, in_nc: int, out_nc: int) -> None:
        super().__init__(in_nc, out_nc, kernel_size=4, stride=2, padding=1)

    @torch.no_grad()
    def init_as_nearest(self) -> None:
        """Set all sixteen weights from nine of them, which have been sampled."""
        self.weight.copy_(as_subpixel(self.weight[..., :3, :3], "nearest"))


def as_subpixel(weight: Tensor, upsample: str) -> Tensor:
    """3x3 weights of "transpose" or "nearest" as the 4x4 weights that compute the same."""
    if upsample == "nearest":
        return with_interpolation(weight, interpolation_kernel("nearest"))
    return F.pad(weight, (0, 1, 0, 1))


def upsampling(in_nc: int, out_nc: int, upsample: str) -> nn.ConvTranspose2d:
    """The layer that --upsample names: (B, in_nc, H, W) -> (B, out_nc, 2H, 2W)."""
    if upsample == "transpose":
        return nn.ConvTranspose2d(in_nc, out_nc, 3, stride=2, padding=1, output_padding=1)
    if upsample == "icnr":
        return SubpixelConv2d(in_nc, out_nc)
    return UpsampleConv2d(in_nc, out_nc, upsample)

"""Keep less for backward: compute again what is cheap, and on request whole blocks.

Normalization, ReLU and padding take a tenth of a generator's time and give more than half of the
maps that it would keep. Sequential computes them again in backward: a training step then saves
half of the plain way's bytes. --checkpoint_activations (recompute_blocks and VGGLoss.recompute)
keeps only the inputs of residual blocks and of VGG's slices: under a third of the bytes, for a
tenth more time (docs/performance.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SMALL = 2**18  # elements; recomputing smaller maps would cost time and save little


class Sequential(nn.Sequential):
    """nn.Sequential that keeps for backward no more than what its convolutions give.

    What follows an instance normalization, up to the next convolution, is computed again in
    backward, which ends where the last tensor that is needed, the convolution's input, is there.
    """

    recompute_all = False  # keep only the input
    _groups: list[nn.Sequential] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        if self.recompute_all:
            return recomputed(nn.Sequential(*self), x)
        if torch.compiler.is_compiling():  # the compiler chooses by itself what to keep
            return super().forward(x)
        if self._groups is None:
            self._groups = [nn.Sequential(*group) for group in _cut_at_norms(self)]
        for group in self._groups:
            lean = isinstance(group[0], nn.InstanceNorm2d) and x.numel() >= SMALL
            x = recomputed(group, x) if lean else group(x)
        return x


def _cut_at_norms(layers: nn.Sequential) -> Iterator[list[nn.Module]]:
    """Groups of layers: each begins at a normalization or ends with a convolution; residual
    blocks stand alone."""
    group: list[nn.Module] = []
    for layer in layers:
        norm = isinstance(layer, (nn.InstanceNorm2d, nn.BatchNorm2d))
        block = next(layer.children(), None) is not None
        if group and (norm or block):
            yield group
            group = []
        group.append(layer)
        if block or isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            yield group
            group = []
    if group:
        yield group


def recompute_blocks(net: nn.Module, on: bool = True) -> None:
    """Let backward compute again what lies inside a generator's residual blocks."""
    for name, module in net.named_modules():
        if name.endswith("conv_block"):
            module.recompute_all = on


def recomputed(layers: nn.Sequential, x: Tensor) -> Tensor:
    """layers(x), of which only x is kept: backward runs the layers a second time.

    Running statistics are updated by the first run alone, and dropout repeats its choice.
    """
    more = {}
    if any(isinstance(layer, nn.BatchNorm2d) for layer in layers):
        more["context_fn"] = lambda: (nullcontext(), _statistics_kept(layers))
    draws = any(isinstance(layer, nn.Dropout) for layer in layers)
    return checkpoint(layers, x, use_reentrant=False, preserve_rng_state=draws, **more)


@contextmanager
def _statistics_kept(layers: nn.Sequential) -> Iterator[None]:
    """Batch normalizations in training normalize as before but leave their statistics alone."""
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count

"""Save less for backward: recompute what is cheap, and on request whole blocks.

Normalization, ReLU and padding take a tenth of a generator's time, but produce more than half of
the maps that it would save. Sequential recomputes them in backward: a training step then keeps half
as many bytes. --checkpoint_activations (recompute_blocks and VGGLoss.recompute) keeps only the
inputs of residual blocks and of VGG's slices: under a third of the bytes, for a sixth more time
(docs/performance.md).
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from models.normalization import ChannelNorm2d

SMALL = 2**18  # elements; recomputing smaller maps would cost time and save little


class Sequential(nn.Sequential):
    """nn.Sequential that keeps for backward no more than the outputs of its convolutions.

    What follows an instance or channel normalization, up to the input of the next convolution, is
    recomputed in backward.
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
            lean = isinstance(group[0], (nn.InstanceNorm2d, ChannelNorm2d)) and x.numel() >= SMALL
            x = _normalize_and_convolve(group, x) if lean else group(x)
        return x


def _cut_at_norms(layers: nn.Sequential) -> Iterator[list[nn.Module]]:
    """Groups of layers: each begins at a normalization or ends with a convolution; residual
    blocks stand alone."""
    group: list[nn.Module] = []
    for layer in layers:
        norm = isinstance(layer, (nn.InstanceNorm2d, nn.BatchNorm2d, ChannelNorm2d))
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


def _normalize_and_convolve(group: nn.Sequential, x: Tensor) -> Tensor:
    """group(x), keeping only x: as by torch's checkpoint, but a GPU waits for 0.1 ms of Python
    instead of 0.3."""
    *layers, last = group
    convolves = isinstance(last, (nn.Conv2d, nn.ConvTranspose2d))
    if not convolves or any(isinstance(layer, nn.Dropout) for layer in layers):
        return recomputed(group, x)
    weights = [weight for layer in layers for weight in layer.parameters()]
    h = _Recomputed.apply(x, layers, *weights)
    node = h.grad_fn
    if node is None:
        return last(h)

    shape = h.shape  # without h itself, as autograd keeps these two functions until backward

    def pack(saved: Tensor) -> Tensor | torch.dtype:
        return saved.dtype if saved.shape == shape else saved  # under autocast h is cast

    def unpack(kept: Tensor | torch.dtype) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        node.rerun = node.run(node.saved_tensors[0])
        return node.rerun[1].detach().to(kept)

    with saved_tensors_hooks(pack, unpack):
        return last(h)


class _Recomputed(torch.autograd.Function):
    """The layers' output, for which only their input is kept. When the following convolution asks
    for its input in backward, the layers run again; the graph of that run gives the gradient here.
    """

    @staticmethod
    def forward(ctx, x: Tensor, layers: list[nn.Module], *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.run, ctx.rerun = partial(_run, layers, _current_autocast(x.device.type)), None
        for layer in layers:
            x = layer(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        (x, h), ctx.rerun = ctx.rerun or ctx.run(x), None
        wanted = [x, *(weight for weight in weights if weight.requires_grad)]
        found = iter(torch.autograd.grad(h, wanted, grad))
        of_x = next(found)
        return of_x, None, *(next(found) if w.requires_grad else None for w in weights)


def _current_autocast(device: str) -> Callable[[], AbstractContextManager]:
    """Makes contexts that restore the present autocast state."""
    if not torch.amp.is_autocast_available(device):  # meta
        return nullcontext
    on = torch.is_autocast_enabled(device)
    return partial(torch.autocast, device, torch.get_autocast_dtype(device), on)


def _run(
    layers: list[nn.Module], autocast: Callable[[], AbstractContextManager], x: Tensor
) -> tuple[Tensor, Tensor]:
    """x as a leaf, and the layers' output for it under that autocast."""
    x = x.detach().requires_grad_()
    h = x
    with torch.enable_grad(), autocast():
        for layer in layers:
            h = layer(h)
    return x, h


def recompute_blocks(net: nn.Module) -> None:
    """Make backward recompute the inside of a generator's residual blocks."""
    for name, module in net.named_modules():
        if name.endswith("conv_block"):
            module.recompute_all = True


def recomputed(layers: nn.Sequential, x: Tensor) -> Tensor:
    """layers(x), keeping only x: backward runs the layers a second time.

    Running statistics are updated only by the first run, and dropout repeats its mask.
    """
    more = {}
    if any(isinstance(layer, nn.BatchNorm2d) for layer in layers):
        more["context_fn"] = lambda: (nullcontext(), _statistics_kept(layers))
    random = any(isinstance(layer, nn.Dropout) for layer in layers)
    return checkpoint(layers, x, use_reentrant=False, preserve_rng_state=random, **more)


@contextmanager
def _statistics_kept(layers: nn.Sequential) -> Iterator[None]:
    """Batch norms in training mode normalize as usual, but do not update their statistics."""
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count

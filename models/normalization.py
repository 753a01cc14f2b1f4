"""Normalization layers (--norm).

On CPUs torch sums channels-last maps naively, so that normalized maps are off by 1e-3 at 2048x1024;
its contiguous kernel is off by 4e-6 where the mean is 100 standard deviations (docs/fidelity.md).
Here errors stay below 1e-6 in both layouts and at every size, at a cost of a twentieth of a
training step's time (docs/performance.md).

Normalizing each pixel (--norm channel) avoids both the spikes and the softness that come from
statistics of the whole image (docs/recipes.md).
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.layers import is_channels_last
from util import distributed

CHUNK = 2**20  # elements normalized at a time: intermediate results then stay in the cache


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's InstanceNorm2d, but exact on CPUs and without a change of layout on GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape, dtype and layout."""
        if torch.compiler.is_compiling():
            return normalize_in_one_kernel(x, self.weight, self.bias, self.eps)
        if x.device.type == "cpu" and x.shape[2:].numel() > 1:
            return Normalize.apply(x, self.weight, self.bias, self.eps, False, None)[0]
        if is_channels_last(x):  # batch normalization of each image alone
            images = [
                F.batch_norm(one, None, None, self.weight, self.bias, training=True, eps=self.eps)
                for one in x.split(1)
            ]
            return images[0] if len(images) == 1 else torch.cat(images)
        return super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d, but exact on CPUs, and over the images of all processes.

    torch's SyncBatchNorm runs only on CUDA, and counts the placeholder of a process that has no
    image of the last batch; has_images = False leaves it out.
    """

    has_images = True

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape, dtype and layout."""
        across_processes = distributed.world_size() > 1
        in_torch = torch.compiler.is_compiling() or x.device.type != "cpu"
        in_torch |= x.numel() <= x.shape[1]  # one value per channel, which torch refuses
        if not self.training or (in_torch and not across_processes):
            return super().forward(x)
        share = float(self.has_images) if across_processes else None
        normalize = _normalize_uncompiled if across_processes else Normalize.apply
        y, mean, variance, count = normalize(x, self.weight, self.bias, self.eps, True, share)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        return y


class ChannelNorm2d(nn.Module):
    """Normalization of each pixel over its channels; each channel has a learnt scale and offset.

    Instance normalization removes the magnitude of a map. A generator that needs it puts a spike
    into one place, which shows as stripes or dots in a single thing, and a discriminator cannot see
    that all edges are soft. Here no pixel depends on the magnitude of others (ChannelNorm of
    Mentzer et al., "High-Fidelity Generative Image Compression", NeurIPS 2020).
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype, channels-last."""
        pixels = x.permute(0, 2, 3, 1)  # no copy for channels-last maps
        normalized = F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, self.eps)
        # Autocast gives float32. A copy, as backward of a ReLU in place would copy a view thrice.
        return normalized.permute(0, 3, 1, 2).to(x.dtype, copy=torch.is_grad_enabled())


NORMS = {  # of --norm
    "instance": InstanceNorm2d,
    "batch": BatchNorm2d,
    "channel": ChannelNorm2d,
}


def set_has_images(net: nn.Module, has_images: bool) -> None:
    """Set whether this process's next images count in the statistics of batch normalization."""
    for layer in net.modules():
        if isinstance(layer, BatchNorm2d):
            layer.has_images = has_images


def normalize_in_one_kernel(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Instance normalization as a formula, for the compiler to fuse."""
    values = x.float()
    values = values - values.mean((2, 3), keepdim=True)
    rest = values.mean((2, 3), keepdim=True)  # the mean's rounding error
    variance = values.square().mean((2, 3), keepdim=True) - rest.square()
    y = (values - rest) * (variance + eps).rsqrt()
    if weight is not None:
        y = y * weight[:, None, None] + bias[:, None, None]
    return y.to(x.dtype)


class Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the pixels of each image (or of the
    whole batch), of each channel: x (B, C, H, W) -> y and, of a batch, mean, variance and count.

    The mean, rounded to float32, is subtracted first; sum and sum of squares of what remains are
    small, so that nothing cancels. Sums are pairwise within a chunk and float64 over chunks.

    share: this process's weight in statistics over all processes (0: its images do not count);
    None: there is only one process.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        over_batch: bool,
        share: float | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | int]:
        x = x if is_channels_last(x) else x.contiguous()
        pixels, axis = _flat_pixels(x)
        axes = (0, axis) if over_batch else (axis,)
        dtype = torch.promote_types(x.dtype, torch.float32)
        mean = pixels.mean(axes, keepdim=True, dtype=dtype)
        count = pixels.numel() // mean.numel()
        if share is not None:
            # the count is filled in on the device, as a copy would wait for it
            own = mean.new_full((1,), count, dtype=torch.float64)
            sums = torch.cat([mean.double().flatten() * count, own])
            *sums, count = distributed.total(sums * share).split([mean.numel(), 1])
            mean = (sums[0] / count).view_as(mean).to(dtype)

        y = torch.empty_like(x, dtype=dtype)
        centred = _flat_pixels(y, axis)[0]

        def centre(part: Tensor, out: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
            return torch.sub(part, mean, out=out), out.square()

        sums = _sums(centre, [pixels, centred], mean, axis, axes)
        rest, squares = (s / count for s in (sums if share is None else _total(sums, share)))
        variance = squares - rest.square()
        rstd = (variance + eps).rsqrt()
        scale = rstd if weight is None else rstd * _like_sums(weight, axis)
        offset = -rest * scale if bias is None else _like_sums(bias, axis) - rest * scale
        scale, offset = scale.to(dtype), offset.to(dtype)
        for out, a, b in _chunks([centred], [scale, offset], axis):
            torch.addcmul(b, out, a, out=out)

        ctx.save_for_backward(x, weight, mean, rest, rstd)
        ctx.axes, ctx.share, ctx.count = axes, share, count
        if not over_batch:
            return y.to(x.dtype), None, None, count
        statistics = (mean + rest).flatten(), variance.flatten()
        # were count differentiable, it and ctx would keep each other, and the graph, alive
        ctx.mark_non_differentiable(*statistics, *([] if share is None else [count]))
        return y.to(x.dtype), *statistics, count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        x, weight, mean, rest, rstd = ctx.saved_tensors
        pixels, axis = _flat_pixels(x)
        dtype, count = mean.dtype, ctx.count
        layout = torch.channels_last if axis == 1 else torch.contiguous_format
        grads = _flat_pixels(grad.contiguous(memory_format=layout), axis)[0]
        grad_x = torch.empty_like(x, dtype=dtype)
        maps = [pixels, grads, _flat_pixels(grad_x, axis)[0]]

        def products(part: Tensor, g: Tensor, out: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
            return g, torch.sub(part, mean, out=out) * g

        sums = _sums(products, maps, mean, axis, ctx.axes)
        grad_weight = grad_bias = None
        if weight is not None:  # of this process alone, as for any other parameter
            of_channels = [0, 2] if axis == 2 else [0, 1]
            grad_weight = (rstd * (sums[1] - rest * sums[0])).sum(of_channels).to(weight.dtype)
            grad_bias = sums[0].sum(of_channels).to(weight.dtype)
        share = 1.0
        if ctx.share is not None:
            sums, share = _total(sums, 1.0), ctx.share
        scale = rstd if weight is None else rstd * _like_sums(weight, axis)
        along = rstd.square() * (sums[1] - rest * sums[0]) * (share / count)
        offset = scale * (along * rest - sums[0] * (share / count))
        factors = [p.to(dtype) for p in (scale, -scale * along, offset)]
        for g, out, a, b, c in _chunks(maps[1:], factors, axis):
            torch.addcmul(c, out, b, out=out).addcmul_(g, a)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None


@torch._disable_dynamo  # like torch.compiler.disable, without importing the compiler here
def _normalize_uncompiled(*args: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalize.apply, for statistics over processes: if compiled, the gradient of the weight is
    wrong (PyTorch 2.14 on CPUs)."""
    return Normalize.apply(*args)


def _sums(
    terms: Callable[..., tuple[Tensor, Tensor]],
    maps: Sequence[Tensor],
    mean: Tensor,
    axis: int,
    axes: tuple[int, ...],
) -> list[Tensor]:
    """The sums over axes of the two terms, chunk by chunk of the maps; shaped like mean."""
    sums = [
        [term.sum(axes, keepdim=True, dtype=mean.dtype) for term in terms(*chunk)]
        for chunk in _chunks(maps, [mean], axis)
    ]
    if len(sums) == 1:
        return sums[0]
    if axis == 2:  # each chunk has other channels
        return [torch.cat(parts, 1) for parts in zip(*sums)]
    return [torch.stack(parts).sum(0, dtype=torch.float64) for parts in zip(*sums)]


def _total(sums: list[Tensor], share: float) -> Tensor:
    """The sums over all processes."""
    return distributed.total(torch.stack(sums).double() * share)


def _flat_pixels(x: Tensor, axis: int | None = None) -> tuple[Tensor, int]:
    """A view of dense maps (B, C, H, W) with one axis of pixels, and its index: channels-last
    (B, H*W, C) and 1, else (B, C, H*W) and 2."""
    if axis == 1 or (axis is None and is_channels_last(x)):
        return x.permute(0, 2, 3, 1).flatten(1, 2), 1
    return x.flatten(2), 2


def _like_sums(values: Tensor, axis: int) -> Tensor:
    """Values of channels (C,), shaped to broadcast over maps from _flat_pixels."""
    return values.view(1, 1, -1) if axis == 1 else values.view(1, -1, 1)


def _chunks(
    maps: Sequence[Tensor], statistics: Sequence[Tensor], axis: int
) -> Iterator[tuple[Tensor, ...]]:
    """Cut maps from _flat_pixels along their second axis, and statistics where they have it."""
    if maps[0].numel() <= CHUNK:
        yield *maps, *statistics
        return
    step = max(1, CHUNK * maps[0].shape[1] // maps[0].numel())
    for start in range(0, maps[0].shape[1], step):
        part = slice(start, start + step)
        cut = [s[:, part] if axis == 2 else s for s in statistics]
        yield *(m[:, part] for m in maps), *cut


def zero_bias_gradients_before_norms(net: nn.Module) -> None:
    """Zero the gradients of biases before normalizations, which subtract them again.

    The computed gradients are rounding errors, which Adam scales up to full steps: a random walk
    that differs between machines and numbers of processes, and changes no image.
    """
    for layers in net.modules():
        if isinstance(layers, nn.Sequential):
            for layer, following in pairwise(layers):
                bias = getattr(layer, "bias", None)
                norm = isinstance(following, (nn.InstanceNorm2d, nn.BatchNorm2d))
                if norm and bias is not None:
                    bias.register_hook(torch.zeros_like)

"""The networks of pix2pixHD: plain modules that take channels and counts, never options.

Source: Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional
GANs", CVPR 2018, sections 3.2 (generators, discriminators) and 3.4 (encoder), appendix for the
layer tables. Parameter names and shapes equal those of the released checkpoints.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

NORMS = ("instance", "batch")
SMALL = 2**18  # elements of a map that is no burden to keep: recomputing would only cost time
NORM_LAYERS = (nn.InstanceNorm2d, nn.modules.batchnorm._BatchNorm)


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's own, but channels-last maps stay so, where torch would copy them there and back."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and layout."""
        if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        if torch.compiler.is_compiling():  # which makes one kernel of it
            variance, mean = torch.var_mean(x.float(), (2, 3), correction=0, keepdim=True)
            y = (x - mean) * (variance + self.eps).rsqrt()
            if self.affine:
                y = y * self.weight[:, None, None] + self.bias[:, None, None]
            return y.to(x.dtype)
        # batch normalization of one picture alone
        pictures = [
            F.batch_norm(one, None, None, self.weight, self.bias, training=True, eps=self.eps)
            for one in x.split(1)
        ]
        return pictures[0] if len(pictures) == 1 else torch.cat(pictures)


class ReflectionPad2d(nn.ReflectionPad2d):
    """torch's own, but channels-last maps on a GPU stay so, where torch would copy them there and
    back. (The compiler needs no help, and only torch's own way has a deterministic backward.)"""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + top + bottom, W + left + right) in the same layout."""
        lasts = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        own = lasts and x.is_cuda and not torch.are_deterministic_algorithms_enabled()
        if own and not torch.compiler.is_compiling():
            return reflect_channels_last(x, self.padding)
        return super().forward(x)


def reflect_channels_last(x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """Reflection padding (left, right, top, bottom) of (B, C, H, W) in channels-last layout: as
    volumes (H, W, C) that are contiguous, padded in two of three dimensions."""
    volumes = F.pad(x.permute(0, 2, 3, 1), (0, 0, *padding), mode="reflect")
    return volumes.permute(0, 3, 1, 2)


def norm_layer(kind: str) -> Callable[[int], nn.Module]:
    """The constructor of a normalization layer: "instance" (no parameters) or "batch"."""
    if kind == "instance":
        return functools.partial(InstanceNorm2d, affine=False)
    if kind == "batch":
        return nn.BatchNorm2d
    raise ValueError(f"norm {kind!r}: expected one of {', '.join(NORMS)}")


def init_weights(module: nn.Module) -> None:
    """Draw the weights of convolutions from N(0, 0.02), of batch norms from N(1, 0.02)."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)


def define_G(
    input_nc: int,
    output_nc: int,
    ngf: int,
    netG: str,
    n_downsample_global: int = 3,
    n_blocks_global: int = 9,
    n_local_enhancers: int = 1,
    n_blocks_local: int = 3,
    norm: str = "instance",
    use_dropout: bool = False,
) -> nn.Module:
    """A generator ("global", "local") or the "encoder", with fresh weights.

    For the encoder output_nc is the number of features and n_downsample_global its depth.
    """
    norm_of = norm_layer(norm)
    if netG == "global":
        net: nn.Module = GlobalGenerator(
            input_nc, output_nc, ngf, n_downsample_global, n_blocks_global, norm_of, use_dropout
        )
    elif netG == "local":
        net = LocalEnhancer(
            input_nc,
            output_nc,
            ngf,
            n_downsample_global,
            n_blocks_global,
            n_local_enhancers,
            n_blocks_local,
            norm_of,
            use_dropout,
        )
    elif netG == "encoder":
        net = Encoder(input_nc, output_nc, ngf, n_downsample_global, norm_of)
    else:
        raise ValueError(f"netG {netG!r}: expected global, local or encoder")
    init_weights(net)
    return net


def define_D(
    input_nc: int,
    ndf: int,
    n_layers: int,
    norm: str = "instance",
    num_D: int = 1,
    get_features: bool = False,
) -> "MultiscaleDiscriminator":
    """A discriminator with fresh weights. get_features: for the feature matching loss."""
    net = MultiscaleDiscriminator(input_nc, ndf, n_layers, norm_layer(norm), num_D, get_features)
    init_weights(net)
    return net


# ---------------------------------------------------------------------------------------------
# Generators
# ---------------------------------------------------------------------------------------------


class ResnetBlock(nn.Module):
    """x + two 3x3 convolutions of x, (B, dim, H, W) to the same shape."""

    def __init__(
        self, dim: int, norm: Callable[[int], nn.Module], use_dropout: bool = False
    ) -> None:
        super().__init__()
        self.recompute = False  # trade time for memory: keep only the input for backward
        self.conv_block = nn.Sequential(
            ReflectionPad2d(1),
            nn.Conv2d(dim, dim, kernel_size=3),
            norm(dim),
            nn.ReLU(True),
            *([nn.Dropout(0.5)] if use_dropout else []),
            ReflectionPad2d(1),
            nn.Conv2d(dim, dim, kernel_size=3),
            norm(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return x + recomputed(self.conv_block, x)
        return x + run_lean(self.conv_block, x)


def _conv7(
    in_nc: int, out_nc: int, norm: Callable[[int], nn.Module] | None = None
) -> list[nn.Module]:
    """The 7x7 convolution at full resolution: into a network (with norm) or out of it (tanh)."""
    ending = [nn.Tanh()] if norm is None else [norm(out_nc), nn.ReLU(True)]
    return [ReflectionPad2d(3), nn.Conv2d(in_nc, out_nc, kernel_size=7), *ending]


def _halve(in_nc: int, norm: Callable[[int], nn.Module]) -> list[nn.Module]:
    """(B, in_nc, H, W) -> (B, 2*in_nc, H/2, W/2)"""
    conv = nn.Conv2d(in_nc, in_nc * 2, kernel_size=3, stride=2, padding=1)
    return [conv, norm(in_nc * 2), nn.ReLU(True)]


def _double(in_nc: int, norm: Callable[[int], nn.Module]) -> list[nn.Module]:
    """(B, in_nc, H, W) -> (B, in_nc/2, 2H, 2W)"""
    conv = nn.ConvTranspose2d(
        in_nc, in_nc // 2, kernel_size=3, stride=2, padding=1, output_padding=1
    )
    return [conv, norm(in_nc // 2), nn.ReLU(True)]


def _downsample() -> nn.AvgPool2d:
    """The image pyramid's step, of generators and discriminators alike."""
    return nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)


class GlobalGenerator(nn.Module):
    """G1 of the paper: convolutions down, residual blocks, transposed convolutions up.

    (B, input_nc, H, W) float -> (B, output_nc, H, W) in [-1, 1]; H and W must be multiples of
    2**n_downsampling.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 64,
        n_downsampling: int = 3,
        n_blocks: int = 9,
        norm: Callable[[int], nn.Module] = InstanceNorm2d,
        use_dropout: bool = False,
    ) -> None:
        super().__init__()
        layers = _conv7(input_nc, ngf, norm)
        for i in range(n_downsampling):
            layers += _halve(ngf * 2**i, norm)
        bottom = ngf * 2**n_downsampling
        layers += [ResnetBlock(bottom, norm, use_dropout) for _ in range(n_blocks)]
        for i in range(n_downsampling, 0, -1):
            layers += _double(ngf * 2**i, norm)
        layers += _conv7(ngf, output_nc)
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return run_lean(self.model, x)


class LocalEnhancer(nn.Module):
    """G2 of the paper: a global generator at low resolution, refined by enhancers around it.

    Each enhancer doubles the resolution: it adds the feature map of the part below to its own,
    halfway. (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]; H and W must be multiples of
    2**(n_downsample_global + n_local_enhancers). ngf counts the channels at full resolution; the
    global part then has ngf * 2**n_local_enhancers.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 32,
        n_downsample_global: int = 3,
        n_blocks_global: int = 9,
        n_local_enhancers: int = 1,
        n_blocks_local: int = 3,
        norm: Callable[[int], nn.Module] = InstanceNorm2d,
        use_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.n_local_enhancers = n_local_enhancers
        whole = GlobalGenerator(
            input_nc,
            output_nc,
            ngf * 2**n_local_enhancers,
            n_downsample_global,
            n_blocks_global,
            norm,
            use_dropout,
        )
        # all but the last layers (padding, 7x7 convolution, tanh) that would draw the picture
        self.model = whole.model[:-3]

        for n in range(1, n_local_enhancers + 1):
            nc = ngf * 2 ** (n_local_enhancers - n)
            down = _conv7(input_nc, nc, norm) + _halve(nc, norm)
            up: list[nn.Module] = [
                ResnetBlock(nc * 2, norm, use_dropout) for _ in range(n_blocks_local)
            ]
            up += _double(nc * 2, norm)
            if n == n_local_enhancers:
                up += _conv7(nc, output_nc)
            setattr(self, f"model{n}_1", nn.Sequential(*down))
            setattr(self, f"model{n}_2", nn.Sequential(*up))
        self.downsample = _downsample()

    def forward(self, x: Tensor) -> Tensor:
        pyramid = [x]  # full resolution first
        for _ in range(self.n_local_enhancers):
            pyramid.append(self.downsample(pyramid[-1]))
        y = run_lean(self.model, pyramid.pop())  # (B, 2*nc, H/2, W/2), nc of the enhancer above
        for n in range(1, self.n_local_enhancers + 1):
            down, up = getattr(self, f"model{n}_1"), getattr(self, f"model{n}_2")
            y = run_lean(up, run_lean(down, pyramid.pop()) + y)
        return y


def run_lean(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply the layers; keep for backward no more than what convolutions give.

    What follows an instance normalization up to and without the next convolution is cheap, and
    backward computes it again: half the memory of a generator for a few hundredths of the time.
    (The recomputation ends where its last needed tensor, the convolution's input, is there.)
    Small maps are kept as they are.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return layers(x)  # the compiler makes this choice by itself
    for group in _groups_from_norms(layers):
        lean = isinstance(group[0], nn.InstanceNorm2d) and x.numel() >= SMALL
        x = recomputed(group, x) if lean else group(x)
    return x


def _groups_from_norms(layers: nn.Sequential) -> Iterator[nn.Sequential]:
    """Cut in front of each normalization and behind each convolution and residual block."""
    start = 0
    for end, layer in enumerate(layers):
        if isinstance(layer, (*NORM_LAYERS, ResnetBlock)) and end > start:
            yield layers[start:end]
            start = end
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, ResnetBlock)):
            yield layers[start : end + 1]
            start = end + 1
    if start < len(layers):
        yield layers[start:]


def recomputed(layers: nn.Sequential, x: Tensor) -> Tensor:
    """layers(x), of which only x is kept: backward runs the layers a second time.

    Running statistics are updated by the first run alone, and dropout repeats its choice.
    """
    more = {}
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers):
        more["context_fn"] = lambda: (nullcontext(), _statistics_rest(layers))
    draws = any(isinstance(layer, nn.Dropout) for layer in layers)
    return checkpoint(layers, x, use_reentrant=False, preserve_rng_state=draws, **more)


@contextmanager
def _statistics_rest(layers: nn.Sequential) -> Iterator[None]:
    """Batch normalizations in training normalize as before but leave their statistics alone."""
    norms = [layer for layer in layers if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count


def rest_idle_biases(net: nn.Module) -> None:
    """Give the biases in front of normalizations, which take them away again, gradient zero.

    What is computed for them is rounding, which Adam would scale up to full steps: a random walk
    that differs with every machine and number of processes, and changes no picture.
    """
    for layers in net.modules():
        if isinstance(layers, nn.Sequential):
            for layer, following in pairwise(layers):
                if isinstance(following, NORM_LAYERS):
                    layer.bias.register_hook(torch.zeros_like)


def recompute_blocks(net: nn.Module, on: bool = True) -> None:
    """Let backward recompute what lies inside the residual blocks instead of keeping it."""
    for block in net.modules():
        if isinstance(block, ResnetBlock):
            block.recompute = on


# ---------------------------------------------------------------------------------------------
# Encoder
# ---------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """E of the paper: a photograph to features that are constant inside each instance.

    forward: image (B, input_nc, H, W) in [-1, 1], inst (B, 1, H, W) integer ->
    (B, output_nc, H, W) in [-1, 1]; H and W must be multiples of 2**n_downsampling.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 16,
        n_downsampling: int = 4,
        norm: Callable[[int], nn.Module] = InstanceNorm2d,
    ) -> None:
        super().__init__()
        layers = _conv7(input_nc, ngf, norm)
        for i in range(n_downsampling):
            layers += _halve(ngf * 2**i, norm)
        for i in range(n_downsampling, 0, -1):
            layers += _double(ngf * 2**i, norm)
        layers += _conv7(ngf, output_nc)
        self.model = nn.Sequential(*layers)

    def forward(self, image: Tensor, inst: Tensor) -> Tensor:
        return instance_average(run_lean(self.model, image), inst)


def instance_average(features: Tensor, inst: Tensor) -> Tensor:
    """Replace each feature by its mean over the instance, in each picture of the batch.

    features (B, C, H, W) float, inst (B, 1, H, W) integer -> (B, C, H, W), float32 at least:
    half precision, also under autocast, is averaged and returned in float32. Differentiable any
    number of times; the cost does not depend on the number of instances. (Paper section 3.4.)
    """
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    segments, count = _segments(inst)
    return _InstanceAverage.apply(features, segments, count)


def _segments(inst: Tensor) -> tuple[Tensor, int]:
    """Number the instances of each picture: (B, 1, H, W) -> (B, H*W) int64 and an upper bound."""
    ids = inst.flatten(1)  # (B, H*W)
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = ids.aminmax()
        if low >= 0 and high <= 0xFFFF:  # 16-bit files: the ids themselves are small enough
            return ids.long(), 0x10000
    # Any integers, and no value is brought to the host, so a GPU never waits: rank the ids.
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
        # float64: millions of float32 additions into one number lose the fourth digit
        sums = features.new_zeros(batch, channels, count, dtype=torch.float64)
        sums.scatter_add_(2, index, features.flatten(2).double())
        areas = features.new_zeros(batch, count)
        areas.scatter_add_(1, segments, features.new_ones(1, 1).expand(segments.shape))
        means = (sums / areas.clamp(min=1)[:, None]).to(features.dtype)
        return means.gather(2, index).view_as(features)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (segments,) = ctx.saved_tensors
        return _InstanceAverage.apply(grad, segments, ctx.count), None, None


# ---------------------------------------------------------------------------------------------
# Discriminators
# ---------------------------------------------------------------------------------------------


def _discriminator_stages(
    input_nc: int, ndf: int, n_layers: int, norm: Callable[[int], nn.Module]
) -> list[list[nn.Module]]:
    """The layers of one PatchGAN discriminator, grouped by the features that they give."""

    def conv(in_nc: int, out_nc: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(in_nc, out_nc, kernel_size=4, stride=stride, padding=2)

    stages: list[list[nn.Module]] = [[conv(input_nc, ndf, 2), nn.LeakyReLU(0.2, True)]]
    nc = ndf
    for n in range(1, n_layers + 1):
        wider = min(nc * 2, 512)
        stride = 2 if n < n_layers else 1
        stages.append([conv(nc, wider, stride), norm(wider), nn.LeakyReLU(0.2, True)])
        nc = wider
    return [*stages, [conv(nc, 1, 1)]]


class NLayerDiscriminator(nn.Module):
    """One PatchGAN discriminator.

    forward: (B, input_nc, H, W) -> list of (B, C, h, w): with get_features the feature maps of
    all stages, else none of them; last the raw scores (B, 1, h, w), before any sigmoid.
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 3,
        norm: Callable[[int], nn.Module] = InstanceNorm2d,
        get_features: bool = False,
    ) -> None:
        super().__init__()
        stages = _discriminator_stages(input_nc, ndf, n_layers, norm)
        if not get_features:
            stages = [[layer for stage in stages for layer in stage]]
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        return run_stages(self.stages, x)


def run_stages(stages: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """Apply one stage after the other and collect what each one gives."""
    outputs = []
    for stage in stages:
        x = stage(x)
        outputs.append(x)
    return outputs


class MultiscaleDiscriminator(nn.Module):
    """num_D discriminators of one architecture, at full, half, quarter... resolution.

    forward: (B, input_nc, H, W) -> a list by scale, full resolution first, of the lists that
    NLayerDiscriminator gives. Parameter names count down: the highest number sees full
    resolution, as in the released checkpoints.
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 3,
        norm: Callable[[int], nn.Module] = InstanceNorm2d,
        num_D: int = 3,
        get_features: bool = False,
    ) -> None:
        super().__init__()
        self.num_D = num_D
        self.n_stages = n_layers + 2 if get_features else 1
        self.get_features = get_features
        for scale in range(num_D):
            single = NLayerDiscriminator(input_nc, ndf, n_layers, norm, get_features)
            for name, stage in zip(self._stage_names(scale), single.stages):
                setattr(self, name, stage)
        self.downsample = _downsample()

    def _stage_names(self, scale: int) -> list[str]:
        if not self.get_features:
            return [f"layer{scale}"]
        return [f"scale{scale}_layer{stage}" for stage in range(self.n_stages)]

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        outputs = []
        for scale in reversed(range(self.num_D)):
            stages = [getattr(self, name) for name in self._stage_names(scale)]
            outputs.append(run_stages(stages, x))
            if scale > 0:
                x = self.downsample(x)
        return outputs

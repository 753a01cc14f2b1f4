"""The networks of pix2pixHD: plain modules that take channels and counts, never options.

Source: Wang et al., "High-Resolution Image Synthesis and Semantic Manipulation with Conditional
GANs", CVPR 2018: section 3.2 (generators, discriminators), 3.4 (encoder), appendix (layers).
Parameter names and shapes equal those of the released checkpoints, except with norm
"channel" and upsample "icnr".

Layers that differ from torch's are in models/layers.py, normalization.py and upsampling.py;
models/recompute.py has the Sequential that saves memory. With torch's own layers in their place the
networks compute the same.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from models.layers import ReflectionPad2d, init_weights, instance_average
from models.normalization import NORMS, InstanceNorm2d
from models.recompute import Sequential
from models.upsampling import upsampling

Norm = Callable[[int], nn.Module]  # channels -> normalization layer

# -- Generators -------------------------------------------------------------------------------


class ResnetBlock(nn.Module):
    """x + two 3x3 convolutions of x, (B, dim, H, W) to the same shape.

    A variant should subclass it and keep the name conv_block, which models/recompute.py looks for;
    models/tiling.py computes the sum as well.
    """

    def __init__(self, dim: int, norm: Norm, use_dropout: bool = False) -> None:
        super().__init__()
        self.conv_block = Sequential(
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
        return x + self.conv_block(x)


def _conv7(in_nc: int, out_nc: int, norm: Norm | None = None) -> list[nn.Module]:
    """The 7x7 convolution at full resolution: into a network (with norm) or out of it (tanh)."""
    ending = [nn.Tanh()] if norm is None else [norm(out_nc), nn.ReLU(True)]
    return [ReflectionPad2d(3), nn.Conv2d(in_nc, out_nc, kernel_size=7), *ending]


def _halve(in_nc: int, norm: Norm) -> list[nn.Module]:
    """(B, in_nc, H, W) -> (B, 2*in_nc, H/2, W/2)"""
    conv = nn.Conv2d(in_nc, in_nc * 2, kernel_size=3, stride=2, padding=1)
    return [conv, norm(in_nc * 2), nn.ReLU(True)]


def _double(in_nc: int, norm: Norm, upsample: str) -> list[nn.Module]:
    """(B, in_nc, H, W) -> (B, in_nc/2, 2H, 2W)"""
    return [upsampling(in_nc, in_nc // 2, upsample), norm(in_nc // 2), nn.ReLU(True)]


def _downsample() -> nn.AvgPool2d:
    """One step of the image pyramid, in generators and discriminators alike."""
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
        norm: Norm = InstanceNorm2d,
        use_dropout: bool = False,
        upsample: str = "transpose",
    ) -> None:
        super().__init__()
        layers = _conv7(input_nc, ngf, norm)
        for i in range(n_downsampling):
            layers += _halve(ngf * 2**i, norm)
        bottom = ngf * 2**n_downsampling
        layers += [ResnetBlock(bottom, norm, use_dropout) for _ in range(n_blocks)]
        for i in range(n_downsampling, 0, -1):
            layers += _double(ngf * 2**i, norm, upsample)
        layers += _conv7(ngf, output_nc)
        self.model = Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class LocalEnhancer(nn.Module):
    """G2 of the paper: a global generator at low resolution, refined by enhancers around it.

    Each enhancer doubles the resolution: halfway, it adds the feature map of the next coarser part
    to its own. (B, input_nc, H, W) -> (B, output_nc, H, W) in [-1, 1]; H and W must be multiples
    of 2**(n_downsample_global + n_local_enhancers). ngf counts the channels at full resolution; the
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
        norm: Norm = InstanceNorm2d,
        use_dropout: bool = False,
        upsample: str = "transpose",
    ) -> None:
        super().__init__()
        self.n_local_enhancers = n_local_enhancers
        coarse_ngf = ngf * 2**n_local_enhancers
        depths, layers = (n_downsample_global, n_blocks_global), (norm, use_dropout, upsample)
        coarse = GlobalGenerator(input_nc, output_nc, coarse_ngf, *depths, *layers)
        # all but the last layers (padding, 7x7 convolution, tanh), which make the image
        self.model = coarse.model[:-3]

        for n in range(1, n_local_enhancers + 1):
            nc = ngf * 2 ** (n_local_enhancers - n)
            down = _conv7(input_nc, nc, norm) + _halve(nc, norm)
            blocks = [ResnetBlock(nc * 2, norm, use_dropout) for _ in range(n_blocks_local)]
            up = [*blocks, *_double(nc * 2, norm, upsample)]
            if n == n_local_enhancers:
                up += _conv7(nc, output_nc)
            setattr(self, f"model{n}_1", Sequential(*down))
            setattr(self, f"model{n}_2", Sequential(*up))
        self.downsample = _downsample()

    def forward(self, x: Tensor) -> Tensor:
        pyramid = [x]  # full resolution first
        for _ in range(self.n_local_enhancers):
            pyramid.append(self.downsample(pyramid[-1]))
        y = self.model(pyramid.pop())  # (B, 2*nc, H/2, W/2), nc of the enhancer above
        for n in range(1, self.n_local_enhancers + 1):
            down, up = getattr(self, f"model{n}_1"), getattr(self, f"model{n}_2")
            y = up(down(pyramid.pop()) + y)
        return y


# -- Encoder ----------------------------------------------------------------------------------


class Encoder(GlobalGenerator):
    """E of the paper: a photograph to features that are constant inside each instance.

    The global generator's layers, without residual blocks, and an average over each instance.

    forward: image (B, input_nc, H, W) in [-1, 1], inst (B, 1, H, W) integer ->
    (B, output_nc, H, W) in [-1, 1]; H and W must be multiples of 2**n_downsampling.
    """

    def forward(self, image: Tensor, inst: Tensor) -> Tensor:
        return instance_average(self.model(image), inst)


# -- Discriminators ---------------------------------------------------------------------------


def patch_discriminator(
    input_nc: int, ndf: int, n_layers: int, norm: Norm
) -> list[list[nn.Module]]:
    """The layers of one PatchGAN discriminator in stages, one for each feature map that it returns.

    The last stage returns raw scores (B, 1, h, w), before any sigmoid.
    """
    conv = partial(nn.Conv2d, kernel_size=4, padding=2)
    stages: list[list[nn.Module]] = [[conv(input_nc, ndf, stride=2), nn.LeakyReLU(0.2, True)]]
    nc = ndf
    for n in range(1, n_layers + 1):
        wider = min(nc * 2, 512)
        stride = 2 if n < n_layers else 1
        stages.append([conv(nc, wider, stride=stride), norm(wider), nn.LeakyReLU(0.2, True)])
        nc = wider
    return [*stages, [conv(nc, 1)]]


class MultiscaleDiscriminator(nn.Module):
    """num_D discriminators of one architecture, at full, half, quarter... resolution.

    (B, input_nc, H, W) -> a list by scale, full resolution first, of lists of (B, C, h, w): with
    get_features the feature maps of all stages, else none of them; last the raw scores. Parameter
    names count down: the highest number sees full resolution, as in the released checkpoints. That
    discriminator does not see the last coarse_nc input channels.
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 3,
        norm: Norm = InstanceNorm2d,
        num_D: int = 3,
        get_features: bool = False,
        coarse_nc: int = 0,
    ) -> None:
        super().__init__()
        self.scales: list[list[str]] = []  # names of stages, full resolution first
        self.finest_nc = input_nc - coarse_nc
        for scale in range(num_D):
            seen = self.finest_nc if scale == num_D - 1 else input_nc
            stages = patch_discriminator(seen, ndf, n_layers, norm)
            names = [f"scale{scale}_layer{n}" for n in range(len(stages))]
            if not get_features:
                stages = [[layer for stage in stages for layer in stage]]
                names = [f"layer{scale}"]
            for name, layers in zip(names, stages):
                setattr(self, name, nn.Sequential(*layers))
            self.scales.insert(0, names)
        self.downsample = _downsample()

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        outputs = []
        for i, names in enumerate(self.scales):
            x = self.downsample(x) if i > 0 else x
            maps = [x if i > 0 else x[:, : self.finest_nc]]
            for name in names:
                maps.append(getattr(self, name)(maps[-1]))
            outputs.append(maps[1:])
        return outputs


# -- Networks with initialized weights --------------------------------------------------------


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
    upsample: str = "transpose",
) -> nn.Module:
    """A generator ("global", "local") or the "encoder", with initialized weights.

    For the encoder output_nc is the number of features and n_downsample_global its depth. Raises
    ValueError for another netG.
    """
    shape = input_nc, output_nc, ngf, n_downsample_global
    layers = NORMS[norm], use_dropout, upsample
    if netG == "global":
        return init_weights(GlobalGenerator(*shape, n_blocks_global, *layers))
    if netG == "local":
        blocks = n_blocks_global, n_local_enhancers, n_blocks_local
        return init_weights(LocalEnhancer(*shape, *blocks, *layers))
    if netG == "encoder":
        return init_weights(Encoder(*shape, 0, *layers))  # no residual blocks
    raise ValueError(f"netG {netG!r}: expected global, local or encoder")


def define_D(
    input_nc: int,
    ndf: int,
    n_layers: int,
    norm: str = "instance",
    num_D: int = 1,
    get_features: bool = False,
    coarse_nc: int = 0,
) -> MultiscaleDiscriminator:
    """A discriminator with initialized weights. get_features: for the feature matching loss."""
    of_scale = input_nc, ndf, n_layers, NORMS[norm]
    return init_weights(MultiscaleDiscriminator(*of_scale, num_D, get_features, coarse_nc))

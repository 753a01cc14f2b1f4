"""The losses: adversarial, feature matching and VGG (the paper's equations 3 to 6), and L1."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.recompute import recomputed
from util.errors import UserError, first_line, out_of_memory
from util.run.checkpoints import load_file

VGG_LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # in the loss: relu1_1 .. relu5_1


def gan_loss(outputs: Sequence[Sequence[Tensor]], is_real: bool, use_lsgan: bool = True) -> Tensor:
    """How far the scores of all scales are from "real" (1) or "fake" (0), summed over scales.

    outputs: those of MultiscaleDiscriminator; raw scores are the last of each scale. use_lsgan:
    least squares (Mao et al., 2017), else cross entropy on the logits.
    """
    scores = [scale[-1].float() for scale in outputs]
    criterion = F.mse_loss if use_lsgan else F.binary_cross_entropy_with_logits
    return sum(criterion(score, torch.full_like(score, float(is_real))) for score in scores)


def feature_matching_loss(
    fake: Sequence[Sequence[Tensor]],
    real: Sequence[Sequence[Tensor]],
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """L1 distance of D's feature maps on fake and real, averaged over scales and stages.

    The weight 4 / number of stages keeps the loss at the scale of the default three-layer D for any
    --n_layers_D. The scores themselves (the last maps) are left out. pixel_weights: see l1.
    """
    weight = 4.0 / (len(fake[0]) - 1) / len(fake)
    return weight * sum(
        l1(fake_map, real_map, pixel_weights)
        for fake_scale, real_scale in zip(fake, real)
        for fake_map, real_map in zip(fake_scale[:-1], real_scale[:-1])
    )


def l1(fake: Tensor, real: Tensor, pixel_weights: Tensor | None = None) -> Tensor:
    """The mean of |fake - real| in float32 at least, of any shape; only fake gets a gradient.

    pixel_weights (B, 1, H, W): with fake and real (B, C, h, w), the mean of weight * |fake - real|;
    for maps of another size the weights are averaged over the area of each of their pixels.
    """
    if pixel_weights is not None and fake.shape[-2:] != pixel_weights.shape[-2:]:
        pixel_weights = F.adaptive_avg_pool2d(pixel_weights, fake.shape[-2:])
    return _L1.apply(fake, real.detach(), pixel_weights)


class _L1(torch.autograd.Function):
    """Saves one byte per element, the sign, where torch's L1 loss saves both inputs."""

    @staticmethod
    def forward(ctx, fake: Tensor, real: Tensor, pixel_weights: Tensor | None) -> Tensor:
        dtype = torch.promote_types(fake.dtype, torch.float32)
        difference = fake.to(dtype, copy=True).sub_(real)  # in place: no further map
        sign = difference.sign().to(torch.int8)
        ctx.save_for_backward(sign, pixel_weights)
        ctx.dtype = fake.dtype
        difference = difference.abs_()
        if pixel_weights is not None:
            difference = difference.mul_(pixel_weights)
        if torch.compiler.is_compiling() and difference.dim() == 4:
            # channels, adjacent in memory, first: else the compiler's kernel strides over them
            return difference.mean(1).mean()
        return difference.mean()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        sign, pixel_weights = ctx.saved_tensors
        gradient = sign * (grad / sign.numel())
        if pixel_weights is not None:
            gradient = gradient * pixel_weights
        return gradient.to(ctx.dtype), None, None


class VGGLoss(nn.Module):
    """Perceptual distance: L1 between VGG19's relu1_1 .. relu5_1 of two images, weighted.

    forward: fake and real (B, 3, H, W) or grey (B, 1, H, W) in [-1, 1], optional pixel weights
    (B, 1, H, W) -> scalar. As in the reference, VGG sees the images as they are, not normalized by
    ImageNet's mean and standard deviation.
    """

    def __init__(self, weights_file: str = "") -> None:
        super().__init__()
        self.slices = nn.ModuleList(vgg19_slices(load_vgg19(weights_file).features))
        self.recompute = False  # trade time for memory: of each slice keep only its input
        self.requires_grad_(False)
        self.eval()

    def forward(self, fake: Tensor, real: Tensor, pixel_weights: Tensor | None = None) -> Tensor:
        if fake.shape[1] == 1:
            fake, real = fake.expand(-1, 3, -1, -1), real.expand(-1, 3, -1, -1)
        distances = []
        for part in self.slices:  # both images in step, so that no map is kept longer than needed
            with torch.no_grad():
                real = part(real)
            keep_less = self.recompute and torch.is_grad_enabled()
            fake = recomputed(part, fake) if keep_less else part(fake)
            distances.append(l1(fake, real, pixel_weights))
        return sum(weight * distance for weight, distance in zip(VGG_LAYER_WEIGHTS, distances))


def vgg19_slices(layers: nn.Sequential) -> list[nn.Sequential]:
    """Cut VGG19's feature layers after relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1."""
    ends = (0, 2, 7, 12, 21, 30)
    slices = [layers[start:end] for start, end in pairwise(ends)]
    for part in slices:
        for layer in part:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # the maps are kept for the loss
    return slices


def load_vgg19(weights_file: str = "") -> nn.Module:
    """VGG19 with the weights in a file (a torchvision vgg19 state dict) or ImageNet's.

    Raises UserError if the file is not such a state dict, or if there is neither file nor network.
    """
    if not weights_file:
        return _download_vgg19()
    if not Path(weights_file).is_file():
        raise UserError(f"--vgg_weights {weights_file}: no such file")
    from torchvision.models import vgg19  # takes seconds, and is needed only here

    with torch.device("meta"):
        net = vgg19(weights=None)
    try:
        net.load_state_dict(load_file(Path(weights_file)), assign=True)
    except UserError as error:
        raise UserError(f"--vgg_weights {error}") from error
    except RuntimeError as error:
        raise UserError(
            f"--vgg_weights {weights_file}: not a state dict of torchvision's vgg19 "
            f"({first_line(error)}); give that, or leave the flag out to download it"
        ) from error
    return net


def _download_vgg19() -> nn.Module:
    from torchvision.models import VGG19_Weights, vgg19

    weights = VGG19_Weights.IMAGENET1K_V1
    try:
        return vgg19(weights=weights)
    except Exception as error:  # no network, a full disk, a partial file: of many types
        if out_of_memory(error):
            raise
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        problem, remedy = "VGG19's ImageNet weights cannot be downloaded", ""
        if path.is_file():
            problem, remedy = f"{path}: damaged", "delete it to download it again, "
        raise UserError(
            f"{problem} ({first_line(error)}): {remedy}give a torchvision vgg19 state dict with "
            "--vgg_weights FILE, or train without this loss: --no_vgg_loss"
        ) from error

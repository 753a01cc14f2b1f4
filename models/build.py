"""From options to networks: the one place that knows which flags make which network."""

import argparse
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from models.networks import define_D, define_G

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def uses_features(opt: argparse.Namespace) -> bool:
    """Whether the generator sees instance (or class) features."""
    return opt.instance_feat or opt.label_feat


def input_channels(opt: argparse.Namespace) -> int:
    """Channels of label, edges and conditions: what both G and D see."""
    return (opt.label_nc or opt.input_nc) + (not opt.no_instance) + opt.cond_nc


def generator_channels(opt: argparse.Namespace) -> int:
    """Channels of G's input: what D sees too, then features or noise."""
    features = opt.feat_num if uses_features(opt) else 0
    return input_channels(opt) + features + opt.instance_noise


def build_generator(opt: argparse.Namespace) -> nn.Module:
    return define_G(
        generator_channels(opt),
        opt.output_nc,
        opt.ngf,
        opt.netG,
        n_downsample_global=opt.n_downsample_global,
        n_blocks_global=opt.n_blocks_global,
        n_local_enhancers=opt.n_local_enhancers,
        n_blocks_local=opt.n_blocks_local,
        norm=opt.norm,
        use_dropout=opt.use_dropout,
        upsample=opt.upsample,
    )


def build_encoder(opt: argparse.Namespace) -> nn.Module:
    own = {"n_downsample_global": opt.n_downsample_E, "norm": opt.norm, "upsample": opt.upsample}
    return define_G(opt.output_nc, opt.feat_num, opt.nef, "encoder", **own)


def build_discriminator(opt: argparse.Namespace) -> nn.Module:
    means = opt.output_nc if opt.instance_mean_D else 0
    return define_D(
        input_channels(opt) + opt.output_nc + means,
        opt.ndf,
        opt.n_layers_D,
        norm=opt.norm,
        num_D=opt.num_D,
        get_features=not opt.no_ganFeat_loss,
        coarse_nc=means,
    )


def build_latent_regressor(opt: argparse.Namespace) -> nn.Sequential:
    """Q of --lambda_latent: predicts an instance's --instance_noise, pixel by pixel, from the maps
    that D sees and the instance's mean colour: (B, C, H, W) -> (B, instance_noise, H, W). Its
    weights are initialized by torch's defaults.

    Source: the Q of InfoGAN (Chen et al., NeurIPS 2016); latent regression in BicycleGAN (Zhu et
    al., NeurIPS 2017).
    """
    input_nc = input_channels(opt) + opt.output_nc
    return nn.Sequential(
        nn.Conv2d(input_nc, 32, 1), nn.ReLU(), nn.Conv2d(32, opt.instance_noise, 1)
    )


def size_multiple(opt: argparse.Namespace) -> int:
    """What H and W of a network's input must be multiples of: the deepest network's stride. E's
    counts even where its features are read from files, as the trained model may also encode."""
    depth = opt.n_downsample_global + enhancers(opt)
    if uses_features(opt):
        depth = max(depth, opt.n_downsample_E)
    return 2**depth


def min_input_side(opt: argparse.Namespace) -> int:
    """The minimum height and width of G's padded input: reflection padding adds one pixel around
    its smallest maps, and three around the global generator's input, which netG local halves."""
    return max(2 * size_multiple(opt), 4 * 2 ** enhancers(opt))


def enhancers(opt: argparse.Namespace) -> int:
    """The number of local enhancers of G: each doubles the size of its images."""
    return opt.n_local_enhancers if opt.netG == "local" else 0


def min_training_side(opt: argparse.Namespace) -> int:
    """The minimum height and width of an image that the networks and losses can train on.

    G's input is padded to a multiple of its stride and must then reach its minimum; D normalizes
    over its smallest scale; VGG halves four times.
    """
    padded = min_input_side(opt)
    sides = [padded - size_multiple(opt) + 1, 4, 2 ** (opt.num_D - 1) + 1]
    if not opt.no_vgg_loss:
        sides.append(16)
    return max(sides)


def autocast(opt: argparse.Namespace, device: torch.device) -> AbstractContextManager:
    """The context that --amp asks for."""
    if opt.amp == "off":
        return nullcontext()
    return torch.autocast(device.type, AMP_TYPES[opt.amp])


def convolution_layout(opt: argparse.Namespace, device: torch.device) -> torch.memory_format:
    """The memory format of convolution weights, and thus of all maps: channels-last where that is
    faster, on CPUs and on the tensor cores of GPUs."""
    if device.type == "cpu" or opt.amp != "off" or opt.data_type == 16 or opt.tf32:
        return torch.channels_last
    return torch.contiguous_format

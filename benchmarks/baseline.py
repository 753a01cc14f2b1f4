"""The baseline: a straightforward implementation of the paper's method, to compare with.

Float32, three passes through D, gradients of G's loss computed for D's weights and discarded, a
loop over instances, maps sent as float32, images decoded and scaled again in every epoch.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.build import build_discriminator, build_encoder, build_generator
from models.layers import ReflectionPad2d
from models.losses import load_vgg19
from models.normalization import BatchNorm2d, InstanceNorm2d
from models.recompute import Sequential


def instance_average(features: Tensor, inst: Tensor) -> Tensor:
    """Replace each feature by its instance's mean: features (B, C, H, W), inst (B, 1, H, W)."""
    means = features.clone()
    for b in range(len(features)):
        for value in inst[b].unique():
            where = (inst[b] == value)[0]  # (H, W)
            for c in range(features.shape[1]):
                means[b, c, where] = features[b, c, where].mean()
    return means


def labels_and_edges(label: Tensor, inst: Tensor, label_nc: int) -> Tensor:
    """One-hot labels and instance edges of float maps (B, 1, H, W): (B, label_nc + 1, H, W)."""
    shape = (len(label), label_nc, *label.shape[2:])
    hot = torch.zeros(shape, device=label.device).scatter_(1, label.long(), 1.0)
    edge = torch.zeros_like(inst, dtype=torch.bool)
    edge[..., 1:] |= inst[..., 1:] != inst[..., :-1]
    edge[..., :-1] |= inst[..., 1:] != inst[..., :-1]
    edge[..., 1:, :] |= inst[..., 1:, :] != inst[..., :-1, :]
    edge[..., :-1, :] |= inst[..., 1:, :] != inst[..., :-1, :]
    return torch.cat([hot, edge.float()], 1)


def plain_generate(
    net: nn.Module, label: Tensor, inst: Tensor, label_nc: int, device: torch.device
) -> np.ndarray:
    """From float maps to 8-bit images (B, H, W, 3), in float32, scaled on the CPU."""
    with torch.no_grad():
        image = net(labels_and_edges(label.to(device), inst.to(device), label_nc))
    pixels = np.transpose(image.cpu().float().numpy(), (0, 2, 3, 1))
    return np.clip((pixels + 1) / 2.0 * 255.0, 0, 255).round().astype(np.uint8)


def plain_layers(net: nn.Module) -> nn.Module:
    """The network with torch's own layers in place of the project's, in place."""
    own = {InstanceNorm2d: nn.InstanceNorm2d, BatchNorm2d: nn.BatchNorm2d}
    own |= {ReflectionPad2d: nn.ReflectionPad2d, Sequential: nn.Sequential}
    for layer in net.modules():
        layer.__class__ = own.get(type(layer), type(layer))  # same state, different forward
    return net


def plain_vgg(weights_file: str) -> nn.Sequential:
    """VGG19's feature layers, none of which overwrites its input."""
    layers = load_vgg19(weights_file).features.eval().requires_grad_(False)
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return layers


def vgg_loss(vgg: nn.Sequential, fake: Tensor, real: Tensor) -> Tensor:
    """The weighted L1 distance of relu1_1 .. relu5_1 of images (B, 3, H, W) in [-1, 1]."""
    total, weights = 0.0, {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}
    for number, layer in enumerate(vgg[:30]):
        fake, real = layer(fake), layer(real)
        if number in weights:
            total = total + weights[number] * F.l1_loss(fake, real.detach())
    return total


class TrainStep(nn.Module):
    """One update of all networks. Takes a batch of float32 maps; returns the losses by name."""

    def __init__(self, opt: argparse.Namespace, device: torch.device) -> None:
        super().__init__()
        self.opt = opt
        self.device = device
        self.netG = plain_layers(build_generator(opt))
        self.netD = plain_layers(build_discriminator(opt))
        self.netE = plain_layers(build_encoder(opt)) if opt.instance_feat else None
        self.vgg = None if opt.no_vgg_loss else plain_vgg(opt.vgg_weights)
        self.to(device)
        of_G = [*self.netG.parameters(), *(self.netE.parameters() if self.netE else [])]
        self.optimizer_G = torch.optim.Adam(of_G, lr=opt.lr, betas=(opt.beta1, 0.999))
        self.optimizer_D = torch.optim.Adam(
            self.netD.parameters(), lr=opt.lr, betas=(opt.beta1, 0.999)
        )

    def gan(self, outputs: list[list[Tensor]], target: float) -> Tensor:
        return sum(F.mse_loss(o[-1], torch.full_like(o[-1], target)) for o in outputs)

    def matching(self, fake: list[list[Tensor]], real: list[list[Tensor]]) -> Tensor:
        weight = 4 / (self.opt.n_layers_D + 1) / self.opt.num_D
        return weight * sum(
            F.l1_loss(a, b.detach())
            for fake_maps, real_maps in zip(fake, real)
            for a, b in zip(fake_maps[:-1], real_maps[:-1])
        )

    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(what D sees with an image, what G sees)"""
        inst = batch["inst"].to(self.device)
        x = labels_and_edges(batch["label"].to(self.device), inst, self.opt.label_nc)
        if self.netE is None:
            return x, x
        features = self.netE.model(batch["image"].to(self.device))
        return x, torch.cat([x, instance_average(features, inst)], 1)

    def step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Update all networks once; returns the losses by name."""
        real = batch["image"].to(self.device)
        x, into_G = self.inputs(batch)
        fake = self.netG(into_G)
        on_detached = self.netD(torch.cat([x, fake.detach()], 1))
        on_real = self.netD(torch.cat([x, real], 1))
        on_fake = self.netD(torch.cat([x, fake], 1))
        losses = {
            "D_fake": self.gan(on_detached, 0.0),
            "D_real": self.gan(on_real, 1.0),
            "G_GAN": self.gan(on_fake, 1.0),
            "G_GAN_Feat": self.opt.lambda_feat * self.matching(on_fake, on_real),
        }
        if self.vgg is not None:
            losses["G_VGG"] = self.opt.lambda_feat * vgg_loss(self.vgg, fake, real)
        loss_G = sum(loss for name, loss in losses.items() if name.startswith("G_"))
        self.optimizer_G.zero_grad()
        loss_G.backward()
        self.optimizer_G.step()
        self.optimizer_D.zero_grad()
        ((losses["D_fake"] + losses["D_real"]) * 0.5).backward()
        self.optimizer_D.step()
        return losses


class Scenes(Dataset):
    """Label, instance map and photograph of each scene, scaled to a width; floats (C, H, W)."""

    def __init__(self, root: Path, load_size: int) -> None:
        self.files = [
            sorted((root / f"train_{kind}").iterdir()) for kind in ("label", "inst", "img")
        ]
        self.load_size = load_size

    def __len__(self) -> int:
        return len(self.files[0])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        label, inst, image = (Image.open(paths[index]) for paths in self.files)
        width, height = self.load_size, self.load_size * label.height // label.width
        label = label.resize((width, height), Image.Resampling.NEAREST)
        inst = inst.resize((width, height), Image.Resampling.NEAREST)
        image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        return {
            "label": torch.from_numpy(np.array(label)).float()[None],
            "inst": torch.from_numpy(np.array(inst).astype(np.int32)).float()[None],
            "image": (pixels - 0.5) / 0.5,
        }

"""The model of the paper: networks, losses, optimizers and one training step.

A step does what these lines do (equations 3 to 6 of the paper), with the same losses, gradients and
updates; tests/test_step.py runs them from here and compares:

    fake = G(x)                                     # x: one-hot labels, edges, features
    D_fake = gan_loss(D(cat(x, fake.detach())), False)
    D_real = gan_loss(D(cat(x, real)), True)
    G_GAN = gan_loss(D(cat(x, fake)), True)
    G_GAN_Feat = lambda_feat * feature_matching_loss(D(cat(x, fake)), D(cat(x, real)))
    G_VGG = lambda_feat * vgg_loss(fake, real)
    update(G, E, loss=G_GAN + G_GAN_Feat + G_VGG)
    update(D, loss=(D_fake + D_real) / 2)

It runs D once on each of the two images, and computes no gradient just to discard it, because G's
gradient arrives through the image. D and VGG see image = fake.detach(); the gradients of G's losses
add up in image.grad; fake.backward(image.grad) then trains G and E. The graphs of VGG, D(real) and
D(fake) are never in memory at the same time. All losses are computed before the update.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.values import bytes_to_float
from models.build import (
    AMP_TYPES,
    autocast,
    build_discriminator,
    build_encoder,
    build_generator,
    build_latent_regressor,
    convolution_layout,
    size_multiple,
    uses_features,
)
from models.ema import start_average, update_average
from models.instance_maps import instance_noise, network_input, pad_to_multiple
from models.layers import instance_average
from models.losses import VGGLoss, feature_matching_loss, gan_loss, l1
from models.normalization import set_has_images, zero_bias_gradients_before_norms
from models.optimizers import adam, adapt_state, learning_rate
from models.recompute import recompute_blocks
from models.transfer import adapt_weights, frozen_layers, layer_differences, map_classes
from util import distributed
from util.errors import UserError, brief
from util.image_pool import ImagePool
from util.run.checkpoints import (
    is_saved,
    load_network,
    load_pretrained,
    require_saved,
    saved_options,
)
from util.run.flags import OLD_DEFAULTS
from util.setup import set_up_compiler

# the order in logs
LOSS_NAMES = ("G_GAN", "G_GAN_Feat", "G_VGG", "G_L1", "G_latent", "D_real", "D_fake")


class Pix2PixHDModel(nn.Module):
    """G, D and, with features, E in training; with --lambda_latent also Q.

    step(batch) takes what data.loader.Loader yields, does one update of all networks and returns
    the losses by name: G_GAN, G_GAN_Feat, G_VGG (both times lambda_feat), G_L1 (times lambda_L1),
    G_latent (times lambda_latent), D_real, D_fake. Afterwards fake and real are its images
    (B, C, H, W) in [-1, 1], and finite says whether losses and gradients were, a scalar bool.
    """

    def __init__(
        self, opt: argparse.Namespace, device: torch.device, one_size: bool = False
    ) -> None:
        """one_size: all images have the same size, so that --compile need not allow for others."""
        super().__init__()
        self.opt = opt
        self.one_size = one_size
        self.device = device
        self.multiple = size_multiple(opt)

        self.netG = build_generator(opt)
        self.netD = build_discriminator(opt)
        makes_features = uses_features(opt) and not opt.load_features
        self.netE = build_encoder(opt) if makes_features else None
        self.netQ = build_latent_regressor(opt) if opt.lambda_latent else None
        with distributed.one_process_first():
            self.vgg = None if opt.no_vgg_loss else VGGLoss(opt.vgg_weights)
        if opt.checkpoint_activations:
            recompute_blocks(self.netG)
            if self.vgg is not None:
                self.vgg.recompute = True
        self.to(device)
        self.layout = convolution_layout(opt, device)
        self.to(memory_format=self.layout)
        for net in self.networks().values():
            zero_bias_gradients_before_norms(net)
        trained = {n: net for n, net in self.networks().items() if n != "D" and opt.ema}
        self.averages = {name: start_average(net) for name, net in trained.items()}
        self.ema_updates = 0

        self.pool = ImagePool(opt.pool_size, opt.seed + distributed.rank())
        self.scaler = torch.amp.GradScaler(device.type, enabled=opt.amp == "fp16")
        self.optimizer_D = adam(self.netD.parameters(), opt, device)
        self.start_stage(fix_global=opt.niter_fix_global > 0)

    def networks(self) -> dict[str, nn.Module]:
        """G, D and E by name. Q is not among them: only training needs it."""
        networks = {"G": self.netG, "D": self.netD, "E": self.netE}
        return {name: net for name, net in networks.items() if net is not None}

    def saved_networks(self) -> dict[str, nn.Module]:
        """The networks that are saved, by name: with --ema also the averages, "G_ema", "E_ema"."""
        return self.networks() | {f"{name}_ema": net for name, net in self.averages.items()}

    def start_stage(self, fix_global: bool) -> None:
        """Start to train all of G, or (fix_global) only its outermost enhancer; E in both.

        G gets a new optimizer, as its set of parameters changes.
        """
        outermost = f"model{self.opt.n_local_enhancers}_"
        for name, parameter in self.netG.named_parameters():
            parameter.requires_grad_(not fix_global or name.startswith(outermost))
        for layer in frozen_layers(self.netG, self.netE, self.opt.freeze):
            layer.requires_grad_(False)
        generators = [net for net in (self.netG, self.netE) if net is not None]
        trained = [p for net in generators for p in net.parameters() if p.requires_grad]
        if not trained:
            raise UserError(f"--freeze {','.join(self.opt.freeze)}: nothing is left to train")
        of_Q = [] if self.netQ is None else self.netQ.parameters()
        self.optimizer_G = adam([*trained, *of_Q], self.opt, self.device)
        self.fixes_global = fix_global
        self.prepare_calls()

    def prepare_calls(self) -> None:
        """Prepare what a step calls: compiled, and averaged over processes, where requested.

        The callables are in a dict, which nn.Module does not register, so that netG, netD and netE
        remain the plain networks that are saved.
        """
        self.call = {}
        in_bf16 = self.opt.amp == "bf16"
        with_Q = self.networks() | ({} if self.netQ is None else {"Q": self.netQ})
        for name, net in with_Q.items():
            self.call[name] = distributed.wrap(self._compiled(net), self.device, in_bf16)
        if self.vgg is not None:
            self.call["VGG"] = self._compiled(self.vgg)
        # the work between the networks: uncompiled, each of its many operations is a kernel
        for work in (network_input, instance_noise, gan_loss, feature_matching_loss, l1):
            self.call[work.__name__] = self._compiled(work)

    def _compiled(self, work: Callable) -> Callable:
        """A network or function as a step calls it: compiled, with --compile."""
        if not self.opt.compile:
            return work
        set_up_compiler()
        # not dynamic: after a first batch with fewer images, all later ones would be slower
        return torch.compile(work, dynamic=False if self.one_size else None)

    def set_learning_rate(self, epoch: int) -> float:
        """Set both optimizers to the rate of an epoch (from 1), and return it."""
        rate = learning_rate(self.opt, epoch)
        for optimizer in (self.optimizer_G, self.optimizer_D):
            for group in optimizer.param_groups:
                group["lr"] = rate
        return rate

    # -- one step ---------------------------------------------------------------------------

    def step(self, batch: dict, weight: float = 1.0) -> dict[str, Tensor]:
        """Update the networks once; see the top of this file. Returns the losses by name.

        weight: this process's share of the batch, times the number of processes.
        """
        set_has_images(self, weight > 0)
        self.optimizer_G.zero_grad()
        self.optimizer_D.zero_grad()
        x, fake, real = self.generate(batch)
        image = fake.detach().float().requires_grad_()
        losses = self._losses(batch, x, image, real, weight)
        fake.backward(image.grad.to(fake.dtype))
        self._update(losses)
        self.fake, self.real = image.detach(), real
        return {name: losses[name] for name in LOSS_NAMES if name in losses}

    def _losses(
        self, batch: dict, x: Tensor, image: Tensor, real: Tensor, weight: float
    ) -> dict[str, Tensor]:
        """The losses by name. Those of G add their gradients to image.grad, those of D and Q to
        their weights' grad.

        In a method of its own so that D's maps, and the signs that L1 keeps, are freed before G's
        backward.
        """
        lambda_feat, use_lsgan = self.opt.lambda_feat, not self.opt.no_lsgan
        gan = partial(self.call["gan_loss"], use_lsgan=use_lsgan)
        losses: dict[str, Tensor] = {}
        pixel_weights = inst = None
        if self.opt.loss_weights:
            pixel_weights = batch["loss_weight"].to(self.device, non_blocking=True)
        if self.opt.instance_mean_D or self.opt.lambda_latent:
            inst = batch["inst"].to(self.device, non_blocking=True)
        with_maps = partial(self._discriminator_input, x, inst)

        if self.vgg is not None:
            losses["G_VGG"] = lambda_feat * self._run("VGG", image, real, pixel_weights)
            self.scaler.scale(losses["G_VGG"] * weight).backward()

        if self.opt.lambda_L1:
            losses["G_L1"] = self.opt.lambda_L1 * self.call["l1"](image, real, pixel_weights)
            self.scaler.scale(losses["G_L1"] * weight).backward()

        if self.netQ is not None:
            losses["G_latent"] = self.opt.lambda_latent * self._latent_loss(x, inst, image)
            self.scaler.scale(losses["G_latent"] * weight).backward()

        with distributed.unsynced(self.call["D"]):  # averaged with D_fake's gradient below
            on_real = self._run("D", with_maps(real))
            losses["D_real"] = gan(on_real, True)
            self.scaler.scale(losses["D_real"] * (0.5 * weight)).backward()
        on_real = [[features.detach() for features in scale] for scale in on_real]

        on_fake = self._run("D", with_maps(image))
        loss_G = losses["G_GAN"] = gan(on_fake, True)
        if not self.opt.no_ganFeat_loss:
            matching = self.call["feature_matching_loss"]
            losses["G_GAN_Feat"] = lambda_feat * matching(on_fake, on_real, pixel_weights)
            loss_G = loss_G + losses["G_GAN_Feat"]
        uses_pool = self.opt.pool_size > 0
        self.scaler.scale(loss_G * weight).backward(inputs=[image], retain_graph=not uses_pool)
        if uses_pool:  # D learns from older images as well
            del on_fake, loss_G
            seen = with_maps(image.detach())
            # weight 0: this image is a placeholder; another process has it, and pools it
            on_fake = self._run("D", self.pool.query(seen) if weight else seen)
        losses["D_fake"] = gan(on_fake, False)
        weights_D = list(self.netD.parameters())  # the image needs no gradient here
        self.scaler.scale(losses["D_fake"] * (0.5 * weight)).backward(inputs=weights_D)
        return {name: loss.detach() for name, loss in losses.items()}

    def generate(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """(x, fake, real): label and edges (B, C, H, W), G's image of them, the photograph."""
        on_device = {
            kind: value.to(self.device, non_blocking=True, memory_format=self.layout)
            for kind, value in batch.items()
            if isinstance(value, Tensor)
        }
        if on_device["image"].dtype == torch.uint8:
            on_device["image"] = bytes_to_float(on_device["image"])
        height, width = on_device["label"].shape[-2:]
        regions = "label" if self.opt.label_feat else "inst"
        if self.opt.fit_features:
            on_device["feat"] = instance_average(on_device["feat"], on_device[regions])
        maps = {kind: pad_to_multiple(value, self.multiple) for kind, value in on_device.items()}
        x = self.call["network_input"](
            maps["label"],
            maps.get("inst"),
            self.opt.label_nc,
            self.opt.ignore_label,
            cond=maps.get("cond"),
            dtype=AMP_TYPES.get(self.opt.amp),
            layout=self.layout,
        )
        inputs = [x]
        if self.netE is not None:
            inputs.append(self._run("E", maps["image"], maps[regions]))
        elif uses_features(self.opt):
            inputs.append(maps["feat"])
        elif self.opt.instance_noise:
            inputs.append(self.call["instance_noise"](maps["inst"], self.opt.instance_noise))
        inputs = [part.contiguous(memory_format=self.layout) for part in inputs]
        fake = self._run("G", x if len(inputs) == 1 else torch.cat(inputs, 1))
        return x[..., :height, :width], fake[..., :height, :width], on_device["image"]

    def _discriminator_input(self, x: Tensor, inst: Tensor | None, image: Tensor) -> Tensor:
        """What D sees: the maps x (B, C, H, W), an image (B, output_nc, H, W) and, with
        --instance_mean_D, its mean over each instance (B, 1, H, W), from which a thing of several
        colours differs. The full-resolution scale ignores the means: its channels are for texture.
        """
        if not self.opt.instance_mean_D:
            return torch.cat([x, image], 1)
        return torch.cat([x, image, self._instance_means(image, inst)], 1)

    def _instance_means(self, image: Tensor, inst: Tensor) -> Tensor:
        return instance_average(image, inst).contiguous(memory_format=self.layout)

    def _latent_loss(self, x: Tensor, inst: Tensor, image: Tensor) -> Tensor:
        """The error of Q in predicting the noise of instances from the maps and their mean colours:
        it is low if different noise gives different colours. A scalar; the arguments are
        _discriminator_input's."""
        seen = torch.cat([x, self._instance_means(image, inst)], 1)
        noise = self.call["instance_noise"](inst, self.opt.instance_noise)
        return F.mse_loss(self._run("Q", seen).float(), noise)

    def _run(self, name: str, *inputs: Tensor | None) -> Tensor:
        """A network's output in the precision that --amp asks for."""
        with autocast(self.opt, self.device):
            return self.call[name](*inputs)

    def _update(self, losses: dict[str, Tensor]) -> None:
        self.finite = self._all_finite(losses)
        self.scaler.step(self.optimizer_G)
        self.scaler.step(self.optimizer_D)
        self.scaler.update()
        if self.scaler.is_enabled():  # an overflow must not stay in batch norm's statistics
            for buffer in self.buffers():
                buffer.nan_to_num_(0, 0, 0)
        for name, average in self.averages.items():
            update_average(average, self.networks()[name], self.opt.ema, self.ema_updates)
        self.ema_updates += 1

    def _all_finite(self, losses: dict[str, Tensor]) -> Tensor:
        """Whether losses and gradients are finite, as a scalar on the device.

        With fp16 the scaler handles overflow: it skips the update and lowers the scale; only a
        scale that has fallen below 1 means that training has failed.
        """
        if self.scaler.is_enabled():
            scale = self.scaler._scale if self.scaler._scale is not None else torch.ones(())
            return scale >= 1
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        return (sum(losses.values()) + total).detach().isfinite()

    # -- saving and loading -----------------------------------------------------------------

    def load_networks(self, folder: Path) -> None:
        """Load the latest weights of a run of exactly this architecture."""
        for name, net in self.saved_networks().items():
            load_network(net, folder / f"latest_net_{name}.pth")

    def load_pretrained_networks(self, folder: Path, epoch: str) -> list[str]:
        """Load what fits from another run, its classes and channels mapped to this run's; G's file
        must exist. Returns what is newly initialized, in one line for each network. Raises
        UserError if --freeze would keep any of that from being trained."""
        fresh = [] if self.netQ is None else ["Q, which --lambda_latent trains"]
        require_saved(folder / f"{epoch}_net_G.pth")  # before classes are looked up in its options
        saved = saved_options(folder)
        old = argparse.Namespace(**{**vars(self.opt), **OLD_DEFAULTS, **saved})
        classes = map_classes(self.opt.map_classes, old, self.opt)
        layers = frozen_layers(self.netG, self.netE, self.opt.freeze)
        frozen = {id(parameter) for layer in layers for parameter in layer.parameters()}
        for name, net in self.networks().items():
            path = folder / f"{epoch}_net_{name}.pth"
            untrained = [parameter for parameter, _ in net.named_parameters()]
            if name != "G" and not is_saved(path):
                fresh.append(f"{name} (no {path})")
            else:
                fits = partial(adapt_weights, network=name, old=old, new=self.opt, classes=classes)
                differences = layer_differences(name, old, self.opt) if saved else ""
                if untrained := load_pretrained(net, path, fits, differences):
                    fresh.append(f"{name}: {brief(untrained)}")
            if any(id(p) in frozen for n, p in net.named_parameters() if n in untrained):
                raise UserError(
                    f"--freeze {','.join(self.opt.freeze)} would keep weights that were "
                    f"never trained: {folder} lacks {fresh[-1]}; leave those parts out"
                )
        for name, average in self.averages.items():  # in place: validation shares its weights
            average.load_state_dict(self.networks()[name].state_dict())
        return fresh

    def training_state(self) -> dict:
        """All that the next step depends on, except for the networks."""
        return {
            "optimizer_G": self.optimizer_G.state_dict(),
            "optimizer_D": self.optimizer_D.state_dict(),
            "scaler": self.scaler.state_dict(),
            "fixes_global": self.fixes_global,
            "updates": self.ema_updates,
            "netQ": None if self.netQ is None else self.netQ.state_dict(),
        }

    def load_training_state(self, state: dict) -> None:
        if state["fixes_global"] != self.fixes_global:
            self.start_stage(state["fixes_global"])
        for name in ("optimizer_G", "optimizer_D"):
            optimizer = getattr(self, name)
            optimizer.load_state_dict(state[name])
            adapt_state(optimizer, self.opt, self.device)
        if self.netQ is not None:
            self.netQ.load_state_dict(state["netQ"])
        self.ema_updates = state.get("updates", 10**9)  # older saves: full --ema decay
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

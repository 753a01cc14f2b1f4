"""The model of the paper: networks, losses, optimizers and one training step."""

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from models.instance_maps import network_input, pad_to_multiple
from models.losses import VGGLoss, feature_matching_loss, gan_loss
from models.networks import define_D, define_G, recompute_blocks, rest_idle_biases
from util import distributed
from util.image_pool import ImagePool
from util.run.checkpoints import load_network, load_pretrained
from util.setup import set_up_compiler

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def uses_features(opt: argparse.Namespace) -> bool:
    """Whether the generator sees instance (or class) features."""
    return opt.instance_feat or opt.label_feat


def input_channels(opt: argparse.Namespace) -> int:
    """Channels of label and edges: what the generator and the discriminator both see."""
    return (opt.label_nc or opt.input_nc) + (not opt.no_instance)


def build_generator(opt: argparse.Namespace) -> nn.Module:
    return define_G(
        input_channels(opt) + (opt.feat_num if uses_features(opt) else 0),
        opt.output_nc,
        opt.ngf,
        opt.netG,
        opt.n_downsample_global,
        opt.n_blocks_global,
        opt.n_local_enhancers,
        opt.n_blocks_local,
        opt.norm,
        opt.use_dropout,
    )


def build_encoder(opt: argparse.Namespace) -> nn.Module:
    return define_G(
        opt.output_nc, opt.feat_num, opt.nef, "encoder", opt.n_downsample_E, norm=opt.norm
    )


def build_discriminator(opt: argparse.Namespace) -> nn.Module:
    return define_D(
        input_channels(opt) + opt.output_nc,
        opt.ndf,
        opt.n_layers_D,
        opt.norm,
        opt.num_D,
        get_features=not opt.no_ganFeat_loss,
    )


def size_multiple(opt: argparse.Namespace) -> int:
    """What H and W of a network's input must be multiples of: the deepest network's stride."""
    depth = opt.n_downsample_global + (opt.n_local_enhancers if opt.netG == "local" else 0)
    if uses_features(opt) and not opt.load_features:
        depth = max(depth, opt.n_downsample_E)
    return 2**depth


def smallest_side(opt: argparse.Namespace) -> int:
    """The fewest pixels, each way, of a picture that the networks and losses can train on.

    G reflects a pixel around its smallest maps, which must be 2x2 for it (and its first layer
    three around the picture); D normalizes over its smallest scale; VGG halves four times.
    """
    sides = [size_multiple(opt) + 1, 4, 2 ** (opt.num_D - 1) + 1]
    if not opt.no_vgg_loss:
        sides.append(16)
    return max(sides)


def autocast(opt: argparse.Namespace, device: torch.device):
    """The context that --amp asks for."""
    if opt.amp == "off":
        return nullcontext()
    return torch.autocast(device.type, AMP_TYPES[opt.amp])


def convolution_layout(opt: argparse.Namespace, device: torch.device) -> torch.memory_format:
    """How convolutions' weights lie in memory, and with them all maps: channels-last where that is
    faster, on CPUs and on the tensor cores of GPUs."""
    if device.type == "cpu" or opt.amp != "off" or opt.data_type == 16 or opt.tf32:
        return torch.channels_last
    return torch.contiguous_format


class Pix2PixHDModel(nn.Module):
    """G, D and, with features, E in training.

    step(batch) takes what data.loader.Loader yields, does one update of all networks and returns
    the losses by name: G_GAN, G_GAN_Feat, G_VGG (both times lambda_feat), D_real, D_fake.
    """

    def __init__(
        self, opt: argparse.Namespace, device: torch.device, one_size: bool = False
    ) -> None:
        """one_size: all pictures have one size, so that --compile need not allow for others."""
        super().__init__()
        self.opt = opt
        self.one_size = one_size
        self.device = device
        self.multiple = size_multiple(opt)

        self.netG = build_generator(opt)
        self.netD = build_discriminator(opt)
        makes_features = uses_features(opt) and not opt.load_features
        self.netE = build_encoder(opt) if makes_features else None
        with distributed.one_process_first():
            self.vgg = None if opt.no_vgg_loss else VGGLoss(opt.vgg_weights)
        if opt.checkpoint_activations:
            recompute_blocks(self.netG)
            if self.vgg is not None:
                self.vgg.recompute = True
        distributed.share_statistics(self)
        self.to(device)
        self.to(memory_format=convolution_layout(opt, device))
        for net in self.networks().values():
            rest_idle_biases(net)

        self.pool = ImagePool(opt.pool_size, opt.seed)
        self.scaler = torch.amp.GradScaler(device.type, enabled=opt.amp == "fp16")
        self.optimizer_D = self._adam(self.netD.parameters())
        self.start_stage(fix_global=opt.niter_fix_global > 0)

    def network_names(self) -> list[str]:
        """The networks that are saved: "G", "D" and perhaps "E"."""
        return ["G", "D"] if self.netE is None else ["G", "D", "E"]

    def networks(self) -> dict[str, nn.Module]:
        """The networks that are saved, by name."""
        return {name: getattr(self, f"net{name}") for name in self.network_names()}

    def start_stage(self, fix_global: bool) -> None:
        """Begin to train all of G, or (fix_global) its outermost enhancer alone; E always.

        G gets a new optimizer, as its set of parameters changes.
        """
        outermost = f"model{self.opt.n_local_enhancers}_"
        for name, parameter in self.netG.named_parameters():
            parameter.requires_grad_(not fix_global or name.startswith(outermost))
        self.optimizer_G = self._adam(self._generator_parameters())
        self.fixes_global = fix_global
        self.wrap()

    def wrap(self) -> None:
        """Make the callables of a step: compiled and averaged over processes, where asked.

        They are kept in a dict, out of nn.Module's sight, so that netG, netD and netE remain the
        plain networks that are saved.
        """
        self.call = {}
        for name, net in self.networks().items():
            self.call[name] = distributed.wrap(self._compiled(net), self.device)
        if self.vgg is not None:
            self.call["VGG"] = self._compiled(self.vgg)

    def _compiled(self, net: nn.Module) -> nn.Module:
        """The network as a step calls it: compiled, with --compile."""
        if not self.opt.compile:
            return net
        set_up_compiler()
        # dynamic: the first batch with fewer pictures would make all later ones slower
        return torch.compile(net, dynamic=False if self.one_size else None)

    def _generator_parameters(self) -> Iterator[nn.Parameter]:
        yield from (p for p in self.netG.parameters() if p.requires_grad)
        if self.netE is not None:
            yield from self.netE.parameters()

    def _trained_parameters(self) -> Iterator[nn.Parameter]:
        yield from self._generator_parameters()
        yield from self.netD.parameters()

    def _adam(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Adam:
        fused = self.device.type == "cuda"
        betas = (self.opt.beta1, 0.999)
        return torch.optim.Adam(parameters, lr=self.opt.lr, betas=betas, fused=fused)

    def set_learning_rate(self, epoch: int) -> float:
        """Set both optimizers to the rate of an epoch (from 1): full for niter epochs, then
        falling linearly to zero over niter_decay. Returns it."""
        past = max(0, epoch - 1 - self.opt.niter)
        rate = self.opt.lr * (1 - past / max(1, self.opt.niter_decay))
        for optimizer in (self.optimizer_G, self.optimizer_D):
            for group in optimizer.param_groups:
                group["lr"] = rate
        return rate

    # -- one step ---------------------------------------------------------------------------

    def generate(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """(x, fake, real): label and edges (B, C, H, W), G's picture of them, the photograph."""
        on_device = {
            kind: value.to(self.device, non_blocking=True)
            for kind, value in batch.items()
            if isinstance(value, Tensor)
        }
        height, width = on_device["label"].shape[-2:]
        maps = {kind: pad_to_multiple(value, self.multiple) for kind, value in on_device.items()}
        x = network_input(maps["label"], maps.get("inst"), self.opt.label_nc, self.opt.ignore_label)
        inputs = [x]
        if self.netE is not None:
            regions = maps["label"] if self.opt.label_feat else maps["inst"]
            inputs.append(self.call["E"](maps["image"], regions))
        elif uses_features(self.opt):
            inputs.append(maps["feat"])
        fake = self.call["G"](x if len(inputs) == 1 else torch.cat(inputs, 1))
        return x[..., :height, :width], fake[..., :height, :width], on_device["image"]

    def step(self, batch: dict, weight: float = 1.0) -> dict[str, Tensor]:
        """Update the networks once. weight: this process's share of the batch, times their number.

        The generator's gradient arrives through the picture: D and VGG see a detached copy, the
        gradients of G's losses with respect to it are added up, and fake.backward(their sum)
        then trains G and E. So D runs once on each picture, none of its weight gradients is
        computed to be thrown away (but by torch.compile, which always computes all), and no two of
        the graphs of VGG, D(real) and D(fake) ever stand in memory together. All losses are those
        of the state before the update.
        """
        opt, scale = self.opt, self.scaler.scale
        distributed.count_statistics(self, weight > 0)
        self.optimizer_G.zero_grad(set_to_none=True)
        self.optimizer_D.zero_grad(set_to_none=True)
        losses: dict[str, Tensor] = {}

        with autocast(opt, self.device):
            x, fake, real = self.generate(batch)
            picture = fake.detach().float().requires_grad_()
            gradient = torch.zeros_like(picture)
            if self.vgg is not None:
                losses["G_VGG"] = opt.lambda_feat * self.call["VGG"](picture, real)
        if self.vgg is not None:
            gradient += _gradient(scale(losses["G_VGG"] * weight), picture)

        with distributed.unsynced(self.call["D"]):
            with autocast(opt, self.device):
                real_outputs = self.call["D"](torch.cat([x, real], 1))
                losses["D_real"] = gan_loss(real_outputs, True, not opt.no_lsgan)
            scale(losses["D_real"] * (0.5 * weight)).backward()
        real_outputs = [[feature.detach() for feature in maps] for maps in real_outputs]

        with autocast(opt, self.device):
            fake_outputs = self.call["D"](torch.cat([x, picture], 1))
            losses["G_GAN"] = gan_loss(fake_outputs, True, not opt.no_lsgan)
            loss_G = losses["G_GAN"]
            if not opt.no_ganFeat_loss:
                matching = feature_matching_loss(fake_outputs, real_outputs)
                losses["G_GAN_Feat"] = opt.lambda_feat * matching
                loss_G = loss_G + losses["G_GAN_Feat"]
        pooled = opt.pool_size > 0
        gradient += _gradient(scale(loss_G * weight), picture, keep_graph=not pooled)
        if pooled:
            del fake_outputs, loss_G
            with autocast(opt, self.device):
                older = self.pool.query(torch.cat([x, picture.detach()], 1))
                fake_outputs = self.call["D"](older)
        with autocast(opt, self.device):
            losses["D_fake"] = gan_loss(fake_outputs, False, not opt.no_lsgan)
        weights = list(self.netD.parameters())  # not the picture
        scale(losses["D_fake"] * (0.5 * weight)).backward(inputs=weights)

        fake.backward(gradient.to(fake.dtype))
        self.finite = self._all_finite(losses)
        self.scaler.step(self.optimizer_G)
        self.scaler.step(self.optimizer_D)
        self.scaler.update()
        self.fake = picture.detach()
        return {name: losses[name].detach() for name in LOSS_NAMES if name in losses}

    def _all_finite(self, losses: dict[str, Tensor]) -> Tensor:
        """Whether losses and gradients are finite, as a scalar on the device.

        With fp16 an overflow is the scaler's business: it skips the update and lowers the scale;
        only a scale that has fallen below 1 tells that training is lost.
        """
        if self.scaler.is_enabled():
            scale = self.scaler._scale if self.scaler._scale is not None else torch.ones(())
            return scale >= 1
        gradients = [p.grad for p in self._trained_parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        return (sum(losses.values()) + total).detach().isfinite()

    # -- saving and loading -----------------------------------------------------------------

    def load_networks(self, folder: Path, epoch: str) -> None:
        """Load the weights of a run of this very architecture."""
        for name, net in self.networks().items():
            load_network(net, folder / f"{epoch}_net_{name}.pth")

    def load_pretrained_networks(self, folder: Path, epoch: str) -> list[str]:
        """Load what fits from another run; G's file must be there. Returns what starts fresh."""
        fresh = []
        for name, net in self.networks().items():
            path = folder / f"{epoch}_net_{name}.pth"
            if name != "G" and not path.is_file():
                fresh.append(f"{name} (no {path})")
                continue
            fresh += [f"{name}: {layer}" for layer in load_pretrained(net, path)]
        return fresh

    def training_state(self) -> dict:
        """All but the networks that the next step depends on."""
        return {
            "optimizer_G": self.optimizer_G.state_dict(),
            "optimizer_D": self.optimizer_D.state_dict(),
            "scaler": self.scaler.state_dict(),
            "fixes_global": self.fixes_global,
        }

    def load_training_state(self, state: dict) -> None:
        if state["fixes_global"] != self.fixes_global:
            self.start_stage(state["fixes_global"])
        for name in ("optimizer_G", "optimizer_D"):
            optimizer = getattr(self, name)
            optimizer.load_state_dict(state[name])
            self._adopt(optimizer)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def _adopt(self, optimizer: torch.optim.Adam) -> None:
        """Give a loaded state this run's kind of Adam and its weights' layout in memory: it may
        have been saved on another device, or without --compile."""
        fused = self.device.type == "cuda"
        for group in optimizer.param_groups:
            group["fused"] = fused
            for weight in group["params"]:
                state = optimizer.state.get(weight, {})
                for key in ("exp_avg", "exp_avg_sq"):
                    if key in state:
                        state[key] = torch.empty_like(weight).copy_(state[key])
                if "step" in state:
                    state["step"] = state["step"].to(self.device if fused else "cpu")


LOSS_NAMES = ("G_GAN", "G_GAN_Feat", "G_VGG", "D_real", "D_fake")  # the order in logs


def _gradient(loss: Tensor, picture: Tensor, keep_graph: bool = False) -> Tensor:
    """d(loss)/d(picture), computed along the picture alone."""
    return torch.autograd.grad(loss, picture, retain_graph=keep_graph)[0]

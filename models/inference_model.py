"""A trained generator (and encoder): maps in, images out."""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.values import image_values
from models.build import (
    AMP_TYPES,
    autocast,
    build_encoder,
    build_generator,
    convolution_layout,
    enhancers,
    generator_channels,
    min_input_side,
    size_multiple,
    uses_features,
)
from models.instance_maps import edges, instance_noise, network_input, pad_to_multiple
from models.layers import instance_average
from models.normalization import InstanceNorm2d
from models.pix2pixHD_model import Pix2PixHDModel
from models.run_encoder import require_encoder
from models.tiling import Map, Region, Tiling
from models.user_maps import Maps, is_single, to_tensors
from util.run.checkpoints import load_network, weights_file


class InferenceModel(nn.Module):
    """G, and on demand E, of a trained run.

    generate and encode take and return tensors on any device; calling the model itself takes maps
    in all forms that users have (see forward). Any image size is allowed: maps are padded to what
    the networks need and the result is cropped. Nothing is kept for a backward pass.
    """

    def __init__(
        self,
        opt: argparse.Namespace,
        device: torch.device,
        folder: Path,
        with_generator: bool = True,
    ) -> None:
        """folder: the run's, with {opt.which_epoch}_net_G.pth, or with --ema _net_G_ema.pth.

        Raises UserError if the file is missing or does not fit opt's architecture. with_generator
        False: only for encoding."""
        super().__init__()
        self.opt = opt
        self.device = device
        self.folder = folder
        self.multiple = size_multiple(opt)
        self.min_side = min_input_side(opt)
        self.netE: nn.Module | None = None
        self.dtype = torch.float16 if opt.data_type == 16 else torch.get_default_dtype()
        self.tiling: Tiling | None = None  # for images that are too large for memory
        if with_generator:
            path = weights_file(folder, opt.which_epoch, "G", opt.ema)
            self.netG = self._loaded(build_generator, opt, path).to(self.dtype)
            self._generator = torch.compile(self.netG) if opt.compile else self.netG

    @classmethod
    def in_training(cls, model: Pix2PixHDModel, opt: argparse.Namespace) -> "InferenceModel":
        """The networks of a model in training, or with --ema their averages. Weights are shared, so
        each call uses the current ones; the model itself is left unchanged."""
        networks = cls(opt, model.device, Path(), with_generator=False)
        nets = model.networks() | model.averages
        networks.netG = networks._generator = _for_inference(nets["G"])
        if "E" in nets:
            networks.netE = _for_inference(nets["E"])
            networks.encoder_multiple, networks.encoder_shrink = networks.multiple, 1
        return networks

    def _loaded(
        self, build: Callable[[argparse.Namespace], nn.Module], opt: argparse.Namespace, path: Path
    ) -> nn.Module:
        """A network with a file's weights. Its initialization does not advance torch's random
        state."""
        with torch.random.fork_rng(devices=[]):
            net = build(opt)
        load_network(net, path)
        layout = convolution_layout(self.opt, self.device)
        net = _for_inference(net).requires_grad_(False)
        return net.to(self.device, memory_format=layout)

    def load_encoder(self, source: Path | None = None) -> None:
        """Load E: from this run (or the run in source), else from the run whose features it was
        trained on.

        Raises UserError if neither has one.
        """
        if self.netE is not None:
            return
        path, opt = require_encoder(source or self.folder, self.opt, self.folder)
        self.encoder_multiple = size_multiple(opt)
        # before the 1024p stage the encoder saw smaller images
        self.encoder_shrink = 2 ** max(0, enhancers(self.opt) - enhancers(opt))
        self.netE = self._loaded(build_encoder, opt, path)  # last: other threads look for it

    @torch.inference_mode()
    def generate(
        self,
        label: Tensor,
        inst: Tensor | None = None,
        feat: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Tensor:
        """Generate the images of scenes.

        label (B, 1, H, W) integers (with label_nc 0: (B, input_nc, H, W) in [-1, 1]), inst
        (B, 1, H, W) integers or None with --no_instance, feat (B, feat_num, H, W) for models with
        features, cond (B, cond_nc, H, W) for those with conditions -> (B, output_nc, H, W) float32
        in [-1, 1].
        """
        height, width = label.shape[-2:]
        images = self._generate_padded(label, inst, self.fitted(feat, label, inst), cond)
        return images[..., :height, :width]

    def _generate_padded(self, *maps: Tensor | None) -> Tensor:
        """The images of maps that are yet to be padded, with their padding."""
        if self.tiling is not None:
            return self._generate_in_tiles(*maps)
        return self.run_generator(self.generator_input(*maps))

    def fitted(self, feat: Tensor | None, label: Tensor, inst: Tensor | None) -> Tensor | None:
        """Feature maps; with --fit_features averaged over the instances (or classes), as maps that
        were encoded at half the size consist of blocks that reach across the edges of things."""
        if feat is None or not self.opt.fit_features:
            return feat
        regions = self.regions(label, inst).to(self.device).long()
        return instance_average(feat.to(self.device), regions)

    def _generate_in_tiles(self, *maps: Tensor | None) -> Tensor:
        """The images of maps, padded to what the networks need, on the CPU."""
        label, inst, feat, cond = self._padded_maps(*maps)
        borders = inst if inst is None else edges(inst)

        def region_of_input(k: int, region: Region) -> Tensor:
            """A region of what the generator sees of the k-th scene."""
            place = (slice(k, k + 1), slice(None), *region)
            x = network_input(label[place], None, self.opt.label_nc, self.opt.ignore_label)
            parts = [x, *(m[place].to(x.dtype) for m in (borders, cond, feat) if m is not None)]
            if self.opt.instance_noise:
                parts.append(instance_noise(inst[place], self.opt.instance_noise))
            return torch.cat(parts, 1).to(self.dtype)

        images = []
        for k in range(len(label)):
            read = partial(region_of_input, k)
            x = Map(read, label.shape[-2:], generator_channels(self.opt))
            with autocast(self.opt, self.device):
                images.append(self.tiling.generate(self.netG, x).float())
        return torch.cat(images) if len(images) > 1 else images[0]

    @torch.inference_mode()
    def run_generator(self, x: Tensor) -> Tensor:
        """The generator alone: the output of generator_input, (B, C, H, W) on the device, H and W
        multiples of self.multiple -> (B, output_nc, H, W) float32 in [-1, 1]."""
        with autocast(self.opt, self.device):
            return self._generator(x).float()

    def generator_input(
        self, label: Tensor, inst: Tensor | None, feat: Tensor | None, cond: Tensor | None = None
    ) -> Tensor:
        """What the generator sees: padded maps with one-hot labels, edges, conditions, and features
        or noise, in float32, or float16 with --data_type 16. With --amp, labels and edges without
        other maps have its type."""
        label, inst, feat, cond = self._padded_maps(label, inst, feat, cond)
        amp = AMP_TYPES.get(self.opt.amp)
        x = network_input(label, inst, self.opt.label_nc, self.opt.ignore_label, cond, dtype=amp)
        if feat is not None:
            x = torch.cat([x, feat], 1)
        if self.opt.instance_noise:
            x = torch.cat([x, instance_noise(inst, self.opt.instance_noise)], 1)
        return x.to(self.dtype) if amp is None else x

    def _padded_maps(
        self, label: Tensor, inst: Tensor | None, feat: Tensor | None, cond: Tensor | None
    ) -> list[Tensor | None]:
        self.require_maps(feat, cond)
        inst = None if self.opt.no_instance else inst
        return [m if m is None else self._padded(m) for m in (label, inst, feat, cond)]

    def require_maps(self, feat: Tensor | None, cond: Tensor | None) -> None:
        """Raise ValueError if features or conditions that the generator needs are missing."""
        if uses_features(self.opt) and feat is None:
            raise ValueError("this model needs a feature map: see StyleChooser and encode")
        if self.opt.cond_nc and cond is None:
            raise ValueError(f"this model needs conditions (B, {self.opt.cond_nc}, H, W)")

    def _padded(self, maps: Tensor) -> Tensor:
        # only CUDA orders such copies: maps on their way to a CPU would be read before they have
        # arrived, and those on their way to a Mac's GPU may be freed before they have left
        maps = maps.to(self.device, non_blocking=self.device.type == "cuda")
        return pad_to_multiple(maps, self.multiple, self.min_side)

    @torch.inference_mode()
    def encode(self, image: Tensor, regions: Tensor) -> Tensor:
        """The features of photographs, averaged over regions (instances, or with --label_feat
        classes): image (B, output_nc, H, W) in [-1, 1], regions (B, 1, H, W) integers ->
        (B, feat_num, H, W) float32."""
        self.load_encoder()
        height, width = image.shape[-2:]
        image = image.to(self.device, torch.get_default_dtype())
        regions = regions.to(self.device).long()  # torch has few operations of unsigned types
        if self.encoder_shrink > 1:
            rows, columns = self._encoded_places(height, width)
            size = len(rows), len(columns)
            image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
            regions = regions[..., rows[:, None], columns]
        small = image.shape[-2:]
        padding = self.encoder_multiple, max(4, 2 * self.encoder_multiple)  # reflected, as in G
        image, regions = (pad_to_multiple(maps, *padding) for maps in (image, regions))
        with autocast(self.opt, self.device):
            feat = self.netE(image, regions)[..., : small[0], : small[1]]
        if self.encoder_shrink > 1:
            feat = F.interpolate(feat, (height, width), mode="nearest-exact")
        return feat.float()

    def _encoded_places(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The rows and columns of the pixels whose regions an encoder of smaller images sees."""
        sizes = [(side, max(1, side // self.encoder_shrink)) for side in (height, width)]
        rows, columns = ((2 * torch.arange(to) + 1) * side // (2 * to) for side, to in sizes)
        return rows.to(self.device), columns.to(self.device)

    @torch.inference_mode()
    def encode_regions(self, image: Tensor, regions: Tensor) -> Tensor:
        """encode's features, but constant in each region. Those of an encoder of smaller images
        consist of blocks, which reach across edges: here each region has its own feature, if the
        encoder saw it at all, in all of its pixels."""
        features = self.encode(image, regions).cpu()
        if self.encoder_shrink == 1:
            return features
        height, width = regions.shape[-2:]
        rows, columns = (places.cpu().numpy() for places in self._encoded_places(height, width))
        for feature, (one,) in zip(features, regions.cpu().numpy()):
            ids, first, numbers = np.unique(one, return_index=True, return_inverse=True)
            seen, place = np.unique(one[rows[:, None], columns], return_index=True)
            y, x = np.divmod(place, len(columns))
            first[np.searchsorted(ids, seen)] = rows[y] * width + columns[x]
            own = feature.flatten(1)[:, torch.from_numpy(first)]
            feature[:] = own[:, torch.from_numpy(numbers.reshape(height, width))]
        return features

    def regions(self, label: Tensor, inst: Tensor | None) -> Tensor:
        """What features are averaged over: instances, or classes with --label_feat."""
        return label if self.opt.label_feat or inst is None else inst

    def encode_batch(self, batch: dict) -> Tensor:
        """The features (B, feat_num, H, W) of the photographs of a batch of scenes."""
        return self.encode(batch["image"], self.regions(batch["label"], batch.get("inst")))

    def forward(
        self,
        label: Maps,
        inst: Maps | None = None,
        feat: Maps | None = None,
        cond: Maps | None = None,
    ) -> np.ndarray:
        """The image of a label map.

        label: (H, W) integers 0 .. label_nc-1; with label_nc 0 an image (H, W, input_nc) of the
        training images' type. inst: (H, W) integers, ignored by a --no_instance model.
        feat: (feat_num, H, W) floats, for models with features. cond: (H, W, cond_nc) of the same
        type as in training. Each is an array, tensor or PIL image of any H and W. For several at
        once: a leading batch dimension (integers may also be (B, 1, H, W)), or a list.
        Returns (H, W, output_nc) of the photographs' type, e.g. uint8, or (B, H, W, output_nc).
        Raises UserError for maps that do not fit.
        """
        images = self.to_arrays(self.generate(*to_tensors(self.opt, label, inst, feat, cond)))
        return images[0] if is_single(label, self.opt.label_nc) else images

    def to_arrays(self, images: Tensor) -> np.ndarray:
        """(B, output_nc, H, W) in [-1, 1] -> (B, H, W, output_nc) of the photographs' type."""
        values = image_values(self.opt, "output")
        return to_uint8(images) if values.is_rgb8 else values.to_array(images)


def _for_inference(net: nn.Module) -> nn.Module:
    """A copy of the network with the same weights, in evaluation mode (no dropout), but with each
    image's own statistics under --norm batch, as in the reference and the original pix2pix."""
    net = copy.deepcopy(net, {id(weight): weight for weight in net.parameters()})
    use_own_statistics(net)
    return net.eval()


def use_own_statistics(net: nn.Module) -> None:
    """Replace batch normalization by instance normalization with the same parameters."""
    for parent in list(net.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                own = InstanceNorm2d(layer.num_features, layer.eps, affine=True)
                own.weight, own.bias = layer.weight, layer.bias
                setattr(parent, name, own)


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] -> (B, H, W, C) uint8, truncated as in the reference."""
    grey = ((images + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)
    return grey.permute(0, 2, 3, 1).cpu().numpy()

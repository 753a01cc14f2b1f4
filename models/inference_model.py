"""A trained generator (and encoder) at work: maps in, photographs out."""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from models.build import (
    autocast,
    build_encoder,
    build_generator,
    convolution_layout,
    size_multiple,
    uses_features,
)
from models.instance_maps import network_input, pad_to_multiple
from models.layers import InstanceNorm2d
from util.errors import UserError
from util.run.checkpoints import load_network, newest, saved_options

Map = np.ndarray | Image.Image | Tensor
Maps = Map | list[Map]  # a list is a batch


class InferenceModel(nn.Module):
    """G, and E where it is asked for, of a trained run.

    generate and encode take and give tensors on any device; calling the model itself takes maps
    as people have them. Any picture size is allowed: maps are padded to what the networks need
    and the result is cropped. Nothing is kept for a backward pass.
    """

    def __init__(
        self,
        opt: argparse.Namespace,
        device: torch.device,
        folder: Path,
        with_generator: bool = True,
    ) -> None:
        """folder: the run's, with {opt.which_epoch}_net_G.pth. Raises UserError if it is not
        there or does not fit the architecture that opt tells. with_generator False: to encode."""
        super().__init__()
        self.opt = opt
        self.device = device
        self.folder = folder
        self.multiple = size_multiple(opt)
        self.least = _least_side(self.multiple)
        self.netE: nn.Module | None = None
        self.dtype = torch.float16 if opt.data_type == 16 else torch.float32
        if with_generator:
            netG = build_generator(opt)
            load_network(netG, folder / f"{opt.which_epoch}_net_G.pth")
            self.netG = self._prepare(netG).to(self.dtype)
            self._generator = torch.compile(self.netG) if opt.compile else self.netG

    def _prepare(self, net: nn.Module) -> nn.Module:
        """Evaluation mode, but with each picture's own statistics under --norm batch.

        So did the reference, and so does the original pix2pix; dropout is off.
        """
        for parent in list(net.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, nn.BatchNorm2d):
                    setattr(parent, name, _own_statistics(layer))
        layout = convolution_layout(self.opt, self.device)
        return net.requires_grad_(False).eval().to(self.device, memory_format=layout)

    def load_encoder(self) -> None:
        """Load E: of this run, or of the run whose features it was trained on.

        Raises UserError if neither has one.
        """
        if self.netE is not None:
            return
        for number, folder in enumerate(run_and_pretrained(self.folder)):
            path = folder / f"{self.opt.which_epoch if number == 0 else 'latest'}_net_E.pth"
            if newest(path).is_file():
                trained = argparse.Namespace(**vars(self.opt))
                if number > 0:  # its own architecture, not that of the stage above
                    vars(trained).update(saved_options(folder))
                netE = build_encoder(trained)
                load_network(netE, path)
                self.netE = self._prepare(netE)
                self.encoder_multiple = 2**trained.n_downsample_E
                # features of a stage below are those of smaller pictures
                below = number > 0 and self.opt.netG == "local"
                self.encoder_shrink = 2**self.opt.n_local_enhancers if below else 1
                return
        raise UserError(
            f"{self.folder}: no trained encoder ({self.opt.which_epoch}_net_E.pth); train with "
            "--instance_feat or --label_feat first"
        )

    @torch.inference_mode()
    def generate(self, label: Tensor, inst: Tensor | None, feat: Tensor | None = None) -> Tensor:
        """Draw the photographs of scenes.

        label (B, 1, H, W) integers (with label_nc 0: (B, 3, H, W) in [-1, 1]), inst (B, 1, H, W)
        integers or None with --no_instance, feat (B, feat_num, H, W) for models with features ->
        (B, 3, H, W) float32 in [-1, 1].
        """
        height, width = label.shape[-2:]
        return self.draw(self.generator_input(label, inst, feat))[..., :height, :width]

    @torch.inference_mode()
    def draw(self, x: Tensor) -> Tensor:
        """The generator alone: its input (B, C, H, W), H and W multiples of self.multiple, on the
        device and of self.dtype -> (B, 3, H, W) float32 in [-1, 1]."""
        with autocast(self.opt, self.device):
            return self._generator(x).float()

    def generator_input(self, label: Tensor, inst: Tensor | None, feat: Tensor | None) -> Tensor:
        """What generate shows to the generator: padded, one-hot, with edges and features."""
        if uses_features(self.opt) and feat is None:
            raise ValueError("this model needs a feature map: see StyleChooser and encode")
        inst = None if self.opt.no_instance else inst
        maps = [m if m is None else self._padded(m) for m in (label, inst, feat)]
        x = network_input(maps[0], maps[1], self.opt.label_nc, self.opt.ignore_label)
        if maps[2] is not None:
            x = torch.cat([x, maps[2].to(x.dtype)], 1)
        return x.to(self.dtype)

    def _padded(self, maps: Tensor) -> Tensor:
        return pad_to_multiple(maps.to(self.device, non_blocking=True), self.multiple, self.least)

    @torch.inference_mode()
    def encode(self, image: Tensor, regions: Tensor) -> Tensor:
        """The features of photographs, averaged over regions (instances, or with --label_feat
        classes): image (B, 3, H, W) in [-1, 1], regions (B, 1, H, W) integers ->
        (B, feat_num, H, W) float32."""
        self.load_encoder()
        height, width = image.shape[-2:]
        image, regions = image.to(self.device), regions.to(self.device)
        if self.encoder_shrink > 1:
            size = [max(1, side // self.encoder_shrink) for side in (height, width)]
            image = F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
            regions = F.interpolate(regions.float(), size, mode="nearest").int()
        small = image.shape[-2:]
        multiple = self.encoder_multiple
        image = pad_to_multiple(image, multiple, _least_side(multiple))
        regions = pad_to_multiple(regions, multiple, _least_side(multiple))
        with autocast(self.opt, self.device):
            feat = self.netE(image, regions)[..., : small[0], : small[1]]
        if self.encoder_shrink > 1:
            feat = F.interpolate(feat, (height, width), mode="nearest")
        return feat.float()

    def regions(self, label: Tensor, inst: Tensor | None) -> Tensor:
        """What features are averaged over: instances, or classes with --label_feat."""
        return label if self.opt.label_feat or inst is None else inst

    def forward(
        self, label: Maps, inst: Maps | None = None, feat: Maps | None = None
    ) -> np.ndarray:
        """The photograph of a label map, as a picture.

        label: (H, W) integers 0 .. label_nc-1; with label_nc 0 an RGB picture (H, W, 3) uint8.
        inst: (H, W) integers, unless the model is one of --no_instance, which looks at none.
        feat: (feat_num, H, W) floats, for models with features. Each as array, tensor or PIL
        image, any H and W. Several at once: a leading batch dimension (for integers also the data
        set's (B, 1, H, W)), or a list. Returns (H, W, 3) uint8, or (B, H, W, 3).
        Raises UserError for maps that do not fit.
        """
        label_t, single = self._label(label)
        shape = len(label_t), *label_t.shape[-2:]
        inst_t = feat_t = None
        if not self.opt.no_instance:
            if inst is None:
                raise UserError("this model needs an instance map as well: G(label, inst)")
            inst_t = _integers(inst, "instance map")
            if inst_t.shape != (shape[0], 1, *shape[1:]):
                raise UserError(f"instance maps {_sizes(inst_t)} beside label maps {shape}")
        if uses_features(self.opt) != (feat is not None):
            has = f"needs a feature map ({self.opt.feat_num}, H, W): G(label, inst, feat)"
            raise UserError(f"this model {'takes no feature map' if feat is not None else has}")
        if feat is not None:
            feat_t = torch.from_numpy(_array(feat)).float()
            feat_t = feat_t[None] if feat_t.ndim == 3 else feat_t
            if feat_t.shape != (shape[0], self.opt.feat_num, *shape[1:]):
                raise UserError(
                    f"feature maps {_sizes(feat_t)} beside label maps {shape}, expected "
                    f"{self.opt.feat_num} features"
                )
        pictures = to_pictures(self.generate(label_t, inst_t, feat_t))
        return pictures[0] if single else pictures

    def _label(self, label: Maps) -> tuple[Tensor, bool]:
        """What generate takes, and whether it was a single one."""
        if self.opt.label_nc:
            maps = _integers(label, "label map")
            _check_labels(maps, self.opt)
            return maps, _array(label).ndim == 2
        pictures = _array(label)
        if pictures.ndim not in (3, 4) or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
            raise UserError(
                f"input pictures of shape {pictures.shape} and type {pictures.dtype}: expected "
                "(H, W, 3) or (B, H, W, 3) uint8"
            )
        rgb = torch.from_numpy(pictures if pictures.ndim == 4 else pictures[None])
        return rgb.permute(0, 3, 1, 2).float() / 127.5 - 1, pictures.ndim == 3


def _own_statistics(norm: nn.BatchNorm2d) -> InstanceNorm2d:
    """A batch norm that takes the statistics of every picture alone, whatever the batch."""
    own = InstanceNorm2d(norm.num_features, norm.eps, affine=True)
    own.weight, own.bias = norm.weight, norm.bias
    return own


def _least_side(multiple: int) -> int:
    """What tiny pictures are padded to: the networks reflect 3 pixels at their top and 1 at their
    bottom, which must be there."""
    return max(4, 2 * multiple)


def _array(maps: Maps) -> np.ndarray:
    """Any maps as one writable array of a type that torch knows."""
    if isinstance(maps, (list, tuple)):
        arrays = [_array(one) for one in maps]
        if len({array.shape for array in arrays}) != 1:
            raise UserError(f"maps of shapes {[array.shape for array in arrays]} in one batch")
        return np.stack(arrays)
    array = np.array(maps.cpu().numpy() if isinstance(maps, Tensor) else maps, order="C")
    wide = array.dtype in (np.uint16, np.uint32, np.uint64)  # torch knows few unsigned types
    return array.astype(np.int64) if wide else array


def _integers(maps: Maps, what: str) -> Tensor:
    """Label or instance maps as (B, 1, H, W) integers."""
    array = _array(maps)
    if array.dtype.kind not in "iub":
        raise UserError(f"a {what} of {array.dtype}: expected integers")
    images = maps if isinstance(maps, (list, tuple)) else [maps]
    colours = any(isinstance(one, Image.Image) and len(one.getbands()) > 1 for one in images)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if colours or array.ndim not in (2, 3) or not array.size:
        raise UserError(f"a {what} of shape {array.shape}: expected (H, W) or (B, H, W)")
    return torch.from_numpy(array).reshape(-1, 1, *array.shape[-2:])


def _sizes(maps: Tensor) -> tuple[int, int, int]:
    return len(maps), *maps.shape[-2:]


def _check_labels(label: Tensor, opt: argparse.Namespace) -> None:
    known = label[label != opt.ignore_label] if opt.ignore_label is not None else label
    if known.numel() and not 0 <= known.min() <= known.max() < opt.label_nc:
        raise UserError(
            f"labels {known.min()} to {known.max()}, but the model knows 0 to {opt.label_nc - 1}"
        )


def to_pictures(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8, converted on the device."""
    grey = ((images + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)
    return grey.permute(0, 2, 3, 1).cpu().numpy()


def run_and_pretrained(folder: Path) -> list[Path]:
    """A run's folder and those of the runs that it was pretrained with, newest first."""
    folders = [folder]
    while True:
        below = saved_options(folders[-1]).get("load_pretrain")
        if not below or Path(below) in folders:
            return folders
        folders.append(Path(below))


def cluster_path(folder: Path, name: str) -> Path:
    """A run's cluster file: in its folder, in that of the run whose features it was trained on, or
    else the name taken as a path."""
    candidates = [below / name for below in run_and_pretrained(folder)]
    return next((path for path in [*candidates, Path(name)] if path.is_file()), candidates[0])

"""Maps as users have them (arrays, tensors, PIL images, lists of them) as tensors, checked."""

import argparse

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.build import uses_features
from util.errors import UserError

Map = np.ndarray | Image.Image | Tensor
Maps = Map | list[Map]  # a list is a batch


def to_tensors(
    opt: argparse.Namespace, label: Maps, inst: Maps | None, feat: Maps | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What InferenceModel.generate takes, from what InferenceModel.forward takes.

    Raises UserError for maps that do not fit the model or each other.
    """
    label = _labels(label, opt) if opt.label_nc else _rgb_images(label)
    batch, height, width = shape = _shape(label)
    if opt.no_instance:
        inst = None
    elif inst is None:
        raise UserError("this model needs an instance map as well: G(label, inst)")
    else:
        inst = _integers(inst, "instance map")
        if _shape(inst) != shape:
            raise UserError(f"instance maps {_shape(inst)} beside label maps {shape}")
    if feat is None and uses_features(opt):
        size = f"({opt.feat_num}, H, W)"
        raise UserError(f"this model needs a feature map {size}: G(label, inst, feat)")
    if feat is not None and not uses_features(opt):
        raise UserError("this model takes no feature map")
    if feat is not None:
        feat = torch.from_numpy(_array(feat)).float()
        feat = feat[None] if feat.ndim == 3 else feat
        if feat.shape != (batch, opt.feat_num, height, width):
            raise UserError(
                f"feature maps {_shape(feat)} beside label maps {shape}, expected {opt.feat_num} "
                "features"
            )
    return label, inst, feat


def is_single(label: Maps, label_nc: int) -> bool:
    """Whether these are not several label maps (with label_nc 0, RGB images) but one."""
    return not isinstance(label, (list, tuple)) and np.ndim(label) == (2 if label_nc else 3)


def _labels(label: Maps, opt: argparse.Namespace) -> Tensor:
    """(B, 1, H, W) integers in 0 .. label_nc-1, or ignore_label."""
    maps = _integers(label, "label map")
    known = maps[maps != opt.ignore_label] if opt.ignore_label is not None else maps
    if known.numel() and not 0 <= known.min() <= known.max() < opt.label_nc:
        raise UserError(
            f"labels {known.min()} to {known.max()}, but the model knows 0 to {opt.label_nc - 1}"
        )
    return maps


def _rgb_images(images: Maps) -> Tensor:
    """(B, 3, H, W) float32 in [-1, 1]."""
    array = _array(images)
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise UserError(
            f"input images of shape {array.shape} and type {array.dtype}: expected (H, W, 3) or "
            "(B, H, W, 3) uint8"
        )
    rgb = torch.from_numpy(array.reshape(-1, *array.shape[-3:]))
    return rgb.permute(0, 3, 1, 2).float() / 127.5 - 1


def _integers(maps: Maps, what: str) -> Tensor:
    """Label or instance maps as (B, 1, H, W) integers."""
    array = _array(maps)
    if array.dtype.kind not in "iub":
        raise UserError(f"a {what} of {array.dtype}: expected integers")
    images = maps if isinstance(maps, (list, tuple)) else [maps]
    colour = any(isinstance(one, Image.Image) and len(one.getbands()) > 1 for one in images)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if colour or array.ndim not in (2, 3) or not array.size:
        raise UserError(f"a {what} of shape {array.shape}: expected (H, W) or (B, H, W)")
    return torch.from_numpy(array).reshape(-1, 1, *array.shape[-2:])


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


def _shape(maps: Tensor) -> tuple[int, int, int]:
    """(B, H, W)"""
    return len(maps), *maps.shape[-2:]

"""From users' maps (arrays, tensors, PIL images, lists of them) to checked tensors."""

import argparse

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.values import Values, image_values
from models.build import uses_features
from models.edit_checks import check_labels
from util.errors import UserError

Map = np.ndarray | Image.Image | Tensor
Maps = Map | list[Map]  # a list is a batch


def to_tensors(
    opt: argparse.Namespace, label: Maps, inst: Maps | None, feat: Maps | None, cond: Maps | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """What InferenceModel.generate takes, from what InferenceModel.forward takes.

    Raises UserError for maps that do not fit the model or each other.
    """
    if opt.label_nc:
        label = _integers(label, "a label map")
        check_labels(label.numpy(), opt)
    else:
        label = _images(label, image_values(opt, "input"))
    shape = _shape(label)
    if opt.no_instance:
        inst = None
    elif inst is None:
        raise UserError("this model needs an instance map as well: G(label, inst)")
    else:
        inst = _integers(inst, "an instance map")
        if _shape(inst) != shape:
            raise UserError(f"instance maps {_shape(inst)} for label maps {shape}")
    feat = _features(feat, opt, shape)
    if cond is None and opt.cond_nc:
        raise UserError(f"this model needs conditions (H, W, {opt.cond_nc}): G(..., cond=...)")
    if cond is not None and not opt.cond_nc:
        raise UserError("this model takes no conditions")
    if cond is not None:
        cond = _images(cond, image_values(opt, "cond"), "conditions")
        if _shape(cond) != shape:
            raise UserError(f"conditions {_shape(cond)} for label maps {shape}")
    return label, inst, feat, cond


def _features(
    feat: Maps | None, opt: argparse.Namespace, shape: tuple[int, int, int]
) -> Tensor | None:
    """Feature maps as (B, feat_num, H, W) float32 for label maps of a shape (B, H, W)."""
    if feat is None and uses_features(opt):
        size = f"({opt.feat_num}, H, W)"
        raise UserError(f"this model needs a feature map {size}: G(label, inst, feat)")
    if feat is None:
        return None
    if not uses_features(opt):
        raise UserError("this model takes no feature map")
    array = _array(feat)
    if array.dtype.kind not in "fiu":
        raise UserError(f"feature maps of {array.dtype}: expected floats")
    feat = torch.from_numpy(array).float()
    feat = feat[None] if feat.ndim == 3 else feat
    batch, height, width = shape
    if feat.shape != (batch, opt.feat_num, height, width):
        raise UserError(
            f"feature maps {_shape(feat)} for label maps {shape}, expected {opt.feat_num} features"
        )
    _check_finite(feat.numpy(), "feature maps")
    return feat


def is_single(label: Maps, label_nc: int) -> bool:
    """Whether this is a single label map (with label_nc 0, a single image)."""
    return not isinstance(label, (list, tuple)) and np.ndim(label) <= (2 if label_nc else 3)


def _images(images: Maps, values: Values, what: str = "input images") -> Tensor:
    """(B, C, H, W) float32, the range of their values as [-1, 1]."""
    if isinstance(images, (list, tuple)) and values.channels == 1:
        images = [_array(one) for one in images]
        images = [one[..., None] if one.ndim == 2 else one for one in images]
    array = _array(images)
    array = array[..., None] if values.channels == 1 and array.ndim == 2 else array
    found = array.shape[-1], array.dtype.name
    wrong = found != (values.channels, values.dtype)
    if array.ndim not in (3, 4) or wrong or not array.size:
        raise UserError(
            f"{what} of shape {array.shape} and type {array.dtype}: expected "
            f"(H, W, {values.channels}) or (B, H, W, {values.channels}) {values.dtype}"
        )
    _check_finite(array, what)
    batch = array.reshape(-1, *array.shape[-3:])
    return torch.stack([values.to_tensor(image) for image in batch])


def _check_finite(array: np.ndarray, what: str) -> None:
    if not np.isfinite(array).all():
        raise UserError(f"{what}: NaN or infinite numbers found; replace them")


def _integers(maps: Maps, what: str) -> Tensor:
    """Label or instance maps as (B, 1, H, W) integers."""
    array = _array(maps)
    if array.dtype.kind not in "iub":
        raise UserError(f"{what} of {array.dtype}: expected integers")
    images = maps if isinstance(maps, (list, tuple)) else [maps]
    colour = any(isinstance(one, Image.Image) and len(one.getbands()) > 1 for one in images)
    colour |= array.ndim == 3 and array.shape[-1] in (1, 3, 4)  # channels last, not maps so narrow
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if colour or array.ndim not in (2, 3) or not array.size:
        raise UserError(f"{what} of shape {array.shape}: expected (H, W) or (B, H, W)")
    if array.dtype in (np.uint16, np.uint32, np.uint64):  # torch has few unsigned types
        array = array.astype(np.int64)
    return torch.from_numpy(array).reshape(-1, 1, *array.shape[-2:])


def _array(maps: Maps) -> np.ndarray:
    """Any maps as one writable array of a type that torch has."""
    if isinstance(maps, (list, tuple)):
        arrays = [_array(one) for one in maps]
        if len({array.shape for array in arrays}) != 1:
            raise UserError(f"maps of shapes {[array.shape for array in arrays]} in one batch")
        return np.stack(arrays)
    if isinstance(maps, Tensor):
        maps = maps.detach().cpu()
        maps = (maps.float() if maps.dtype == torch.bfloat16 else maps).numpy()
    array = np.array(maps, order="C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _shape(maps: Tensor) -> tuple[int, int, int]:
    """(B, H, W)"""
    return len(maps), *maps.shape[-2:]

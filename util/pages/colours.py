"""From tensors and label maps to images: palettes, class names, image files."""

import argparse
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from util.errors import UserError
from util.files import replacing

# Cityscapes' own definition: names by id, colours in hexadecimal. The license plate is -1 there; an
# 8-bit file cannot hold that, and --label_nc 35 leaves id 34 for it.
_CITYSCAPES = """
unlabeled 000000, ego vehicle 000000, rectification border 000000, out of roi 000000,
static 000000, dynamic 6f4a00, ground 510051, road 804080, sidewalk f423e8, parking faaaa0,
rail track e6968c, building 464646, wall 66669c, fence be9999, guard rail b4a5b4,
bridge 966464, tunnel 96785a, pole 999999, polegroup 999999, traffic light faaa1e,
traffic sign dcdc00, vegetation 6b8e23, terrain 98fb98, sky 4682b4, person dc143c,
rider ff0000, car 00008e, truck 000046, bus 003c64, caravan 00005a, trailer 00006e,
train 005064, motorcycle 0000e6, bicycle 770b20, license plate 00008e
"""
_ROWS = [row.rpartition(" ") for row in _CITYSCAPES.strip().replace("\n", " ").split(", ")]
CITYSCAPES_NAMES: list[str] = [name for name, _, _ in _ROWS]

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@lru_cache
def palette(label_nc: int) -> np.ndarray:
    """The colour of every class: (label_nc, 3) uint8, read-only; class 0 is black.

    Cityscapes' colours for its 35 classes, PASCAL VOC's palette for any other number up to 65536.
    """
    if not 1 <= label_nc <= 65536:
        raise ValueError(f"label_nc is {label_nc}, expected 1 to 65536")
    if label_nc == len(_ROWS):
        colours = np.array([list(bytes.fromhex(colour)) for _, _, colour in _ROWS], np.uint8)
    else:
        colours = _voc_palette(label_nc)
    colours.flags.writeable = False  # it is shared by every caller
    return colours


def _voc_palette(count: int) -> np.ndarray:
    """VOC's palette, (count, 3) uint8: the id's bits go to r, g and b in turn.

    The lowest bits of an id become the highest bits of its colour, so near ids look far apart
    and no two ids below 2**24 share a colour.
    """
    ids = np.arange(count)
    colours = np.zeros((count, 3), np.uint8)
    for bit in range(24):
        colours[:, bit % 3] |= ((ids >> bit & 1) << 7 - bit // 3).astype(np.uint8)
    return colours


def colour_label(label: np.ndarray, label_nc: int) -> np.ndarray:
    """Colour a label map: (H, W) integers in [0, label_nc) -> (H, W, 3) uint8."""
    if label.ndim != 2 or label.dtype.kind not in "iu":
        raise ValueError(f"expected an HxW integer label map, got {label.dtype} {label.shape}")
    if label.size and (label.min() < 0 or label.max() >= label_nc):
        raise ValueError(f"labels {label.min()} to {label.max()} with label_nc {label_nc}")
    return palette(label_nc)[label]


def label_image(label: torch.Tensor, label_nc: int, ignore_label: int | None = None) -> np.ndarray:
    """A network's input as an image HxWx3 uint8: a label map (1, H, W) in colours, ignored pixels
    black, or with label_nc 0 the input image (3, H, W) in [-1, 1]."""
    if label_nc == 0:
        return to_image(label)
    classes = label[0].cpu().numpy().astype(np.int64)
    ignored = classes == ignore_label
    image = colour_label(np.where(ignored, 0, classes), label_nc)
    return np.where(ignored[..., None], np.uint8(0), image)


def scene_images(
    label: torch.Tensor, fake: torch.Tensor, real: torch.Tensor, opt: argparse.Namespace
) -> dict[str, np.ndarray]:
    """A scene as images (H, W, 3) uint8: label map (see label_image), generated, real, both
    (C, H, W) in [-1, 1]."""
    return {
        "input_label": label_image(label, opt.label_nc, opt.ignore_label),
        "synthesized_image": to_image(fake),
        "real_image": to_image(real),
    }


def class_name(label: int, label_nc: int) -> str:
    """A class's name if the classes are Cityscapes' 35, else e.g. "class 7"."""
    has_name = label_nc == len(CITYSCAPES_NAMES) and 0 <= label < label_nc
    return CITYSCAPES_NAMES[label] if has_name else f"class {label}"


def class_id(name_or_id: str, label_nc: int) -> int:
    """The class that a user means by its number or, for Cityscapes, its name ('traffic_light').

    With label_nc 0, where only instance maps give classes, any number.
    """
    text = str(name_or_id).strip().lower().replace("_", " ")
    if text.isdecimal() and (label_nc == 0 or int(text) < label_nc):
        return int(text)
    named = label_nc == len(CITYSCAPES_NAMES)
    if named and text in CITYSCAPES_NAMES:
        return CITYSCAPES_NAMES.index(text)
    names = f" or a name: {', '.join(CITYSCAPES_NAMES)}" if named else ""
    most = f" from 0 to {label_nc - 1}" if label_nc else ""
    raise UserError(f"unknown class {name_or_id!r}: expected an id{most}{names}")


def to_image(tensor: torch.Tensor) -> np.ndarray:
    """An image to look at: (C, H, W) float in [-1, 1] -> (H, W, 3) uint8: the first three channels,
    or with one or two the first as grey.

    Values outside are clipped. Grey levels are truncated, not rounded, as in the reference.
    """
    if tensor.ndim != 3:
        raise ValueError(f"expected an image (C, H, W), got {tuple(tensor.shape)}")
    shown = tensor[:3] if len(tensor) >= 3 else tensor[:1]
    grey = (shown.detach().float() + 1) / 2.0 * 255.0
    grey = grey.nan_to_num(nan=0.0).clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(grey.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())  # CHW -> HWC


def save_image(array: np.ndarray, path: str | Path, quality: int = 95) -> None:
    """Write (H, W, 3) or (H, W) uint8, whole or not at all, as PNG or JPEG by the suffix."""
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"{path}: expected one of {', '.join(_FORMATS)}")
    with replacing(path) as temporary:  # PNG ignores the quality
        # PNG: the lowest compression takes half the time of Pillow's default, for at most a sixth
        # more bytes; the cores that write also generate the next images
        # JPEG: colours at full resolution, or those of neighbouring classes run into each other
        options = {"quality": quality, "subsampling": 0, "compress_level": 1}
        content = io.BytesIO()  # Pillow does not notice if a full disk cuts a JPEG short
        Image.fromarray(array).save(content, _FORMATS[path.suffix.lower()], **options)
        temporary.write_bytes(content.getvalue())

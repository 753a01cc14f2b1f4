"""From integer maps to what the networks see: one-hot labels and instance edges."""

import torch
from torch import Tensor


def one_hot(
    label: Tensor, label_nc: int, ignore_label: int | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """(B, 1, H, W) integers in 0 .. label_nc-1 -> (B, label_nc, H, W) of dtype, or float32.

    Pixels of ignore_label get zero in every channel.
    """
    batch, _, height, width = label.shape
    index = label.long()
    hot = torch.zeros(batch, label_nc, height, width, dtype=dtype, device=label.device)
    if ignore_label is None:
        return hot.scatter_(1, index, 1.0)
    known = index != ignore_label
    return hot.scatter_(1, torch.where(known, index, 0), known.to(hot.dtype))


def edges(inst: Tensor) -> Tensor:
    """(B, 1, H, W) integers -> (B, 1, H, W) bool: a pixel that differs from a 4-neighbour.

    Both sides of a border are marked. (Paper section 3.3, the instance boundary map.)
    """
    # bytes until the end: for booleans torch's compiler generates invalid C++
    border = torch.zeros(inst.shape, dtype=torch.uint8, device=inst.device)
    across = (inst[..., :, 1:] != inst[..., :, :-1]).byte()
    down = (inst[..., 1:, :] != inst[..., :-1, :]).byte()
    border[..., :, 1:] |= across
    border[..., :, :-1] |= across
    border[..., 1:, :] |= down
    border[..., :-1, :] |= down
    return border.bool()


def pad_to_multiple(maps: Tensor, multiple: int, min_side: int = 1) -> Tensor:
    """Repeat the last row and column until H and W are multiples, and at least min_side.

    (..., H, W) of any dtype.
    """
    for dim in (-2, -1):
        side = maps.shape[dim]
        count = torch.sym_max((side + multiple - 1) // multiple, -(-min_side // multiple))
        padded = count * multiple
        # an exported graph serves every size, so it must not depend on this one
        if torch.compiler.is_compiling() or padded != side:
            places = torch.arange(padded, device=maps.device).clamp(max=side - 1)
            maps = maps.index_select(dim, places)
    return maps


def instance_class(inst_id: int) -> int:
    """The class of a Cityscapes instance id: the id itself, or id // 1000 for a thing. Ids from
    2**31 on are stored as negative numbers (data.files)."""
    return inst_id if abs(inst_id) < 1000 else inst_id % 2**32 // 1000


def instance_noise(inst: Tensor, count: int) -> Tensor:
    """Pseudo-random numbers for each instance, constant inside it. What the label map leaves open,
    e.g. a car's colour, can depend on them, and is then decided for the thing, not for each pixel.

    inst (B, 1, H, W) integers -> (B, count, H, W) float32 in [-1, 1), the same for the same id
    everywhere. They are the id times 1/g, 1/g**2, ..., modulo 1, with g**(count + 1) = g + 1. These
    fill a cube evenly: things with neighbouring ids get numbers far apart.
    """
    g = 1.5
    for _ in range(50):
        g = (g + 1) ** (1 / (count + 1))
    steps = [int(2**16 / g**k) | 1 for k in range(1, count + 1)]
    ids = inst.long()
    numbers = torch.cat([ids * step % 2**16 for step in steps], 1)  # no copy to wait for on a GPU
    return numbers.float() / 2**15 - 1


def network_input(
    label: Tensor,
    inst: Tensor | None,
    label_nc: int,
    ignore_label: int | None = None,
    cond: Tensor | None = None,
    dtype: torch.dtype | None = None,
    layout: torch.memory_format | None = None,
) -> Tensor:
    """What both G and D see of a scene: one-hot labels and, if given, edges and conditions.

    label (B, 1, H, W) integers, or with label_nc 0 (B, input_nc, H, W) float; inst (B, 1, H, W)
    integers; cond (B, cond_nc, H, W) float -> (B, C, H, W) float32 with C = label_nc or input_nc,
    plus 1, plus cond_nc. dtype: a smaller one for labels and edges, whose 0 and 1 are exact in any;
    joined to float maps they become float32 anyway. layout: the result's memory format.
    """
    x = one_hot(label, label_nc, ignore_label, dtype) if label_nc else label
    parts = [x] if inst is None else [x, edges(inst).to(x.dtype)]
    if cond is not None:
        parts.append(cond)
    x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return x if layout is None else x.contiguous(memory_format=layout)

"""--load_pretrain from a run with other classes or channels: which weights of the first and last
layers go where; and upsampling layers that change to --upsample icnr. All other layers must have
the same shapes."""

import argparse
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.build import uses_features
from models.networks import ResnetBlock
from models.upsampling import as_subpixel
from util.errors import UserError
from util.pages.colours import class_id
from util.progress import log_main

SHAPES = {  # the flags that define a network's layers, except for what adapt_weights adapts
    "G": ("n_downsample_global", "n_blocks_global", "norm", "use_dropout", "upsample"),
    "D": ("ndf", "n_layers_D", "num_D", "norm", "no_ganFeat_loss"),
    "E": ("nef", "n_downsample_E", "feat_num", "norm", "upsample"),
}

Parts = list[tuple[str, int]]  # what the input channels of a layer are, in order, and how many


def map_classes(text: str, old: argparse.Namespace, new: argparse.Namespace) -> dict[int, int]:
    """--map_classes OLD=NEW,... as new class -> old class; of 35 classes, Cityscapes' names may be
    given. Without the flag classes keep their numbers, which needs equal counts; if either run has
    images instead of labels (--label_nc 0), there are none to map."""
    if not old.label_nc or not new.label_nc:
        if text:
            raise UserError(
                f"--map_classes {text}: that run has --label_nc {old.label_nc}, this one "
                f"{new.label_nc}: there are no classes to map; leave it out"
            )
        return {}
    if not text:
        if old.label_nc != new.label_nc:
            raise UserError(
                f"--load_pretrain: that run has --label_nc {old.label_nc}, this one "
                f"{new.label_nc}; say which class becomes which with --map_classes OLD=NEW,..."
            )
        return {label: label for label in range(new.label_nc)}
    mapping: dict[int, int] = {}
    for pair in text.split(","):
        before, equals, after = pair.partition("=")
        if not (before and equals and after):
            raise UserError(f"--map_classes {pair}: expected OLD=NEW, e.g. car=1 or 26=1")
        label = class_id(after, new.label_nc)
        if label in mapping:
            raise UserError(f"--map_classes: class {after} is named twice")
        mapping[label] = class_id(before, old.label_nc)
    return mapping


def input_parts(opt: argparse.Namespace, network: str, layer: str) -> Parts:
    """What the first layer of network "G", "D" or "E" sees. D has one for each scale."""
    if network == "E":
        return [("image", opt.output_nc)]
    parts = [("class", opt.label_nc)] if opt.label_nc else [("input", opt.input_nc)]
    parts += [("edges", int(not opt.no_instance)), ("cond", opt.cond_nc)]
    if network == "D":
        full_resolution = re.match(rf"(scale|layer){opt.num_D - 1}\D", layer)
        means = opt.output_nc if opt.instance_mean_D and not full_resolution else 0
        return [*parts, ("image", opt.output_nc), ("means", means)]
    parts += [("feat", opt.feat_num if uses_features(opt) else 0)]
    return [*parts, ("noise", opt.instance_noise)]


def layer_differences(network: str, old: argparse.Namespace, new: argparse.Namespace) -> str:
    """Which flags give a network other layers than that run's, and what to do; "" if none do."""
    flags = SHAPES[network]
    if network == "G" and (old.netG, new.netG) == ("global", "local"):  # which contains the first
        outer = old.ngf // 2**new.n_local_enhancers
        if new.ngf != outer:
            return f"--ngf was {old.ngf}, which --netG local continues with --ngf {outer}"
    elif network == "G":
        local = ("n_local_enhancers", "n_blocks_local") if new.netG == "local" else ()
        flags = ("netG", "ngf", *flags, *local)
    pairs = [(flag, getattr(old, flag), getattr(new, flag)) for flag in flags]
    changes = [f"--{flag} was {before}, now {now}" for flag, before, now in pairs if before != now]
    return f"{', '.join(changes)}: give the old flags" if changes else ""


def adapt_weights(
    state: dict[str, Tensor],
    own: dict[str, Tensor],
    network: str,
    old: argparse.Namespace,
    new: argparse.Namespace,
    classes: dict[int, int],
) -> dict[str, Tensor]:
    """state with first, last and upsampling layers as new's network has them.

    New classes start from the mean of the old ones, as do new input and output channels. New edges,
    conditions, features, noise and means start from zero, so that they change nothing at first.
    Classes in place of an image, or the reverse, start from the initialization. Raises UserError if
    --freeze would keep what starts from zero or the initialization from being trained.

    own: the state of new's network; network: "G", "D" or "E"; classes: see map_classes.
    """
    if network == "G" and old.upsample != new.upsample and new.upsample != "icnr":
        log_main(
            f"  G: --upsample {old.upsample} -> {new.upsample}: the same weights compute something "
            "else in upsampling layers; with --upsample icnr they compute the same as before"
        )
    if network == "G" and old.norm != new.norm:
        log_main(
            f"  --norm {old.norm} -> {new.norm}: the same weights compute something else in all "
            "networks"
        )
    moved = any(classes.get(label) != label for label in range(new.label_nc))
    adapted = dict(state)
    for name, weight in state.items():
        if name not in own or weight.ndim != 4:
            continue
        before, after = (input_parts(opt, network, name) for opt in (old, new))
        kernels = weight.shape[2:], own[name].shape[2:]
        counts = tuple(sum(count for _, count in parts) for parts in (before, after))
        sees_maps = _is_first(name, network) and (weight.shape[1], own[name].shape[1]) == counts
        if sees_maps and (before != after or moved):
            adapted[name], unseen = _input_weights(weight, own[name], before, after, classes)
            if unseen and network == "G" and "down" in new.freeze:
                raise UserError(
                    f"--freeze down would keep G from learning what its new {' and '.join(unseen)} "
                    "channels mean; leave down out, or do without them"
                )
            log_main(f"  {network}: {name}: {_describe(before)} -> {_describe(after)}")
        elif kernels == ((3, 3), (4, 4)) and network != "D" and old.upsample != "bilinear":
            adapted[name] = as_subpixel(weight, old.upsample)
            log_main(f"  {network}: {name}: 3x3 -> 4x4, which computes the same")
        elif weight.shape[0] == old.output_nc != new.output_nc == own[name].shape[0]:
            for key in (name, name.removesuffix("weight") + "bias"):
                mean = state[key].mean(0, keepdim=True)
                adapted[key] = mean.repeat_interleave(new.output_nc, 0)
            log_main(f"  {network}: {name}: {old.output_nc} -> {new.output_nc} output channels")
    return adapted


def _is_first(name: str, network: str) -> bool:
    """Whether a layer sees the maps themselves: Sequential's second, after the padding, or a
    scale's first in D (layerSCALE without feature matching)."""
    if network == "D":
        return re.fullmatch(r"(scale\d+_layer0|layer\d+)\.0\.weight", name) is not None
    return re.fullmatch(r"model(\d+_1)?\.1\.weight", name) is not None


def _input_weights(
    weight: Tensor, initial: Tensor, before: Parts, after: Parts, classes: dict[int, int]
) -> tuple[Tensor, list[str]]:
    """A convolution's weights (out, in, k, k) for other input channels, and which parts of these
    start from zero or the initialization. initial: as the new layer was initialized."""
    old = dict(zip((name for name, _ in before), weight.split([count for _, count in before], 1)))
    columns, unseen = [], []
    for (name, count), fresh in zip(after, initial.split([count for _, count in after], 1)):
        part = old.get(name, weight[:, :0])
        if name in ("class", "input") and name not in old:
            columns.append(fresh)  # zeros, or equal ones, would never learn
            unseen.append(name)
        elif name == "class":
            mean = part.mean(1, keepdim=True)
            one = part.split(1, 1)
            columns += [one[classes[k]] if k in classes else mean for k in range(count)]
        elif part.shape[1] == count:
            columns.append(part)
        elif name in ("image", "input") and part.shape[1]:
            columns.append(part.mean(1, keepdim=True).expand(-1, count, -1, -1))
        else:
            columns.append(weight.new_zeros(len(weight), count, *weight.shape[2:]))
            if count:
                unseen.append(name)
    return torch.cat(columns, 1), unseen


def _describe(parts: Parts) -> str:
    return " + ".join(f"{count} {name}" for name, count in parts if count)


def frozen_layers(netG: nn.Module, netE: nn.Module | None, parts: Sequence[str]) -> list[nn.Module]:
    """What --freeze keeps from being trained: "E", and of G "down", "blocks" and "up" (the layers
    before, in and after the residual blocks)."""
    found = [netE] if netE is not None and "E" in parts else []
    for layers in [child for child in netG.children() if isinstance(child, nn.Sequential)]:
        blocks = [k for k, layer in enumerate(layers) if isinstance(layer, ResnetBlock)]
        ups = [k for k, layer in enumerate(layers) if isinstance(layer, nn.ConvTranspose2d)]
        first = min([*blocks, *ups], default=len(layers))
        end = max(blocks, default=first - 1) + 1
        slices = {"down": layers[:first], "blocks": layers[first:end], "up": layers[end:]}
        found += [layer for part in slices if part in parts for layer in slices[part]]
    return found

"""A trained run as the editor finds it, with random weights: no training needed."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from models import DEFAULTS
from models.build import build_encoder, build_generator, uses_features

SMALL = {"ngf": 4, "n_downsample_global": 2, "n_blocks_global": 1, "nef": 4, "n_downsample_E": 1}


def write_run(checkpoints: Path, name: str, **flags: object) -> Path:
    """Write checkpoints/NAME: opt.json, latest_net_G.pth, latest_net_E.pth and five styles of
    each class. flags: of the architecture and the data; --instance_feat is on by default."""
    opt = {**DEFAULTS, **SMALL, "instance_feat": True, "resize_or_crop": "none", **flags}
    torch.manual_seed(0)
    folder = checkpoints / name
    folder.mkdir(parents=True, exist_ok=True)
    namespace = argparse.Namespace(**opt)
    save(build_generator(namespace), folder / "latest_net_G.pth")
    if uses_features(namespace):
        save(build_encoder(namespace), folder / "latest_net_E.pth")
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(opt["label_nc"]), 5)
        styles = np.column_stack([labels, rng.normal(size=(len(labels), opt["feat_num"]))])
        np.save(folder / "features_clustered_010.npy", styles.astype(np.float32))
    (folder / "opt.json").write_text(json.dumps(opt))
    return folder


def save(net: torch.nn.Module, path: Path) -> None:
    """Random weights, large enough that the image shows what the network sees."""
    for name, value in net.state_dict().items():
        if name.endswith("weight"):
            value.mul_(10)
    torch.save(net.state_dict(), path)

"""Write the trained encoder's feature maps, at twice the size, for training the 1024p stage.

    python precompute_feature_maps.py --name label2city_512p_feat

Writes DATAROOT/train_feat/STEM.png, named like the label maps: 8-bit, feat_num channels, -1 .. 1
as 0 .. 255. train.py reads them with --load_features.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from data.create import create_dataset
from data.loader import batches_in_order
from models.inference_model import InferenceModel, to_pictures
from options.test_options import EncoderOptions, weights_folder
from util import distributed
from util.errors import UserError, run
from util.files import make_folder
from util.pages.colours import save_image
from util.progress import bar, log
from util.setup import seed_everything, set_up_torch


def precompute(opt: argparse.Namespace, device: torch.device) -> None:
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    if opt.feat_num > 4:
        raise UserError(f"--feat_num {opt.feat_num}: a PNG file holds at most 4 features")
    encoder = weights_folder(opt) / f"{opt.which_epoch}_net_E.pth"
    if not encoder.is_file():
        raise UserError(f"{encoder}: no trained encoder; train with --instance_feat first")
    model = InferenceModel(opt, device, weights_folder(opt), with_generator=False)
    model.load_encoder()
    if opt.verbose and distributed.is_main():
        log(str(model))

    dataset = create_dataset(opt, training=False)
    folder = make_folder(Path(opt.dataroot) / f"{opt.phase}_feat", "--dataroot")
    mine = list(range(distributed.rank(), len(dataset), distributed.world()))
    share = torch.utils.data.Subset(dataset, mine)
    loader = batches_in_order(share, 1, opt.nThreads, bool(opt.gpu_ids))
    for index, batch in zip(mine, bar(loader, total=len(mine), desc="features", unit="picture")):
        feat = model.encode(batch["image"], batch.get("inst", batch["label"]))
        doubled = feat.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        below = Path(dataset.scenes[index]).parent  # a folder inside train_label/, or "."
        target = folder / below / f"{Path(batch['path'][0]).stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        save_image(as_picture(to_pictures(doubled)[0]), target)
    distributed.wait_for_all()
    if distributed.is_main():
        width, height = feat.shape[-1] * 2, feat.shape[-2] * 2
        log(f"{len(dataset)} feature maps of {width}x{height} in {folder}")


def as_picture(array: np.ndarray) -> np.ndarray:
    """(H, W, C) -> what Pillow takes: without the last axis if there is one channel."""
    return array[..., 0] if array.shape[-1] == 1 else array


def main() -> None:
    distributed.launch(precompute, EncoderOptions().parse())


if __name__ == "__main__":
    run(main)

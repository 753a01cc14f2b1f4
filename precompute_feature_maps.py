"""Write the trained encoder's feature maps, at twice the size, for training the 1024p stage.

    python precompute_feature_maps.py --name label2city_512p_feat

Writes DATAROOT/train_feat/STEM.png, named like the label maps: 8-bit, feat_num channels, -1 .. 1
as 0 .. 255. train.py reads them with --load_features. The name of a run of that stage gives the
same maps, up to rounding: its encoder is that of the run it was pretrained from.
"""

import argparse
from pathlib import Path

import torch

from data.arrays import write_array
from data.create import create_dataset
from data.loader import own_batches, own_scenes
from models import create_encoder
from models.inference_model import to_uint8
from options.test_options import EncoderOptions, encoder_file
from util import distributed
from util.errors import UserError, run
from util.files import lock_folder, make_folder
from util.progress import log_main
from util.setup import seed_everything, set_up_torch


def precompute(opt: argparse.Namespace, device: torch.device) -> None:
    """Write a feature map for every scene of opt.phase."""
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    if opt.feat_num > 4:
        raise UserError(f"--feat_num {opt.feat_num}: a PNG file holds at most 4 features")
    model = create_encoder(opt, device, encoder_file(opt).parent)

    dataset = create_dataset(opt, training=False)
    torch.backends.cudnn.benchmark &= dataset.has_one_size  # see set_up_torch
    folder = make_folder(Path(opt.dataroot) / f"{opt.phase}_feat", "--dataroot")
    # held while the variable lives: two commands would mix their encoders' maps
    _lock = lock_folder(folder, "precompute_feature_maps.py") if distributed.is_main() else None
    distributed.wait_for_all()  # before any process removes maps
    targets = [
        folder / Path(scene).parent / f"{dataset.files['label'][scene].stem}.png"
        for scene in dataset.scenes  # in the same subfolders as in train_label/
    ]
    for index in own_scenes(dataset):
        targets[index].unlink(missing_ok=True)  # if killed, leave no maps of two encoders
    sizes = set()
    for index, batch in own_batches(dataset, opt, "features"):
        # of instances even with --label_feat, as in the reference
        feat = model.encode(batch["image"], batch.get("inst", batch["label"]))
        if model.encoder_shrink == 1:  # else they are already larger than the encoder's input
            feat = feat.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        (array,) = to_uint8(feat)  # (H, W, feat_num)
        targets[index].parent.mkdir(parents=True, exist_ok=True)
        write_array(array, targets[index])
        sizes.add(f"{array.shape[1]}x{array.shape[0]}")
    sizes = set().union(*distributed.gather(sizes))
    size = sizes.pop() if len(sizes) == 1 else "several sizes"
    log_main(f"{len(dataset)} feature maps of {size} in {folder}")


def main() -> object:
    return distributed.launch(precompute, EncoderOptions().parse())


if __name__ == "__main__":
    run(main)

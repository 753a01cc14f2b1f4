"""Encode the instances of the training set, and cluster their features into styles per class.

    python encode_features.py --name label2city_512p_feat

Writes checkpoints/NAME/features.npy and features_clustered_010.npy (for --n_clusters 10). Another
--n_clusters clusters the same features again; --reencode encodes them again.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from data.arrays import write_array
from data.create import create_dataset
from data.loader import gather_by_index, own_batches
from models import create_encoder
from models.inference_model import InferenceModel
from models.run_encoder import find_encoder, is_outdated, record_encoder, recorded_checksum
from models.styles import cluster, instance_classes, instance_rows, load_rows, styles_to_rows
from options.test_options import EncoderOptions, encoder_file
from util import distributed
from util.errors import UserError, run
from util.files import checksum_of, lock_folder, make_folder
from util.pages.colours import class_name
from util.progress import log, log_main
from util.run.checkpoints import run_dir
from util.run.resume import FOLDER_FLAGS
from util.setup import seed_everything, set_up_torch


def encode(opt: argparse.Namespace, device: torch.device) -> None:
    """Write the features, unless they are up to date, and the styles."""
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    path = run_dir(opt) / "features.npy"
    # held while the variable lives: two commands would mix their encoders' features and styles
    _lock = lock_folder(path, "encode_features.py") if distributed.is_main() else None
    # the first process decides for all: other machines may have a copy of the folder as it was
    if distributed.gather(needs_encoding(opt, path))[0]:
        encoder = used_encoder(opt)
        made_by = checksum_of(encoder)  # before: training may save another one meanwhile
        model = create_encoder(opt, device, encoder_file(opt).parent)
        make_folder(run_dir(opt), FOLDER_FLAGS)
        rows = encode_instances(model, opt)
        if distributed.is_main():
            path.unlink(missing_ok=True)  # if killed, no other encoder's features are left
            record_encoder(path, made_by)
            write_array(rows, path)
    if distributed.is_main():
        write_styles(path, opt)


def used_encoder(opt: argparse.Namespace) -> Path | None:
    """The file of the encoder that encodes: that of encoder_file, or of the run whose features its
    run was trained on; None if both are missing."""
    return find_encoder(encoder_file(opt).parent, opt, run_dir(opt))[0]


def needs_encoding(opt: argparse.Namespace, path: Path) -> bool:
    """Whether features.npy is missing, another encoder's, or to be replaced."""
    if opt.reencode or not path.is_file():
        return True
    encoder = used_encoder(opt)
    if encoder is None and opt.load_pretrain:  # create_encoder refuses it
        return True
    outdated = is_outdated(path, encoder)
    log_main(
        f"{path} is from an encoder other than {encoder}: encoding again"
        if outdated
        else f"clustering {path} as it is (if the data changed, give --reencode)"
    )
    return outdated


def encode_instances(model: InferenceModel, opt: argparse.Namespace) -> np.ndarray:
    """One row for each instance of every scene (models.styles.instance_rows), in order of scenes.

    Memory grows with the number of instances, not of images.
    """
    dataset = create_dataset(opt, training=False)
    torch.backends.cudnn.benchmark &= dataset.has_one_size  # see set_up_torch
    found: dict[int, np.ndarray] = {}
    for index, batch in own_batches(dataset, opt, "encoding"):
        regions = batch.get("inst", batch["label"])  # instances, with --label_feat too
        features = model.encode_regions(batch["image"], regions)[0].numpy()
        label = batch["label"][0, 0].numpy() if opt.label_nc else None
        inst = regions[0, 0].numpy()
        found[index] = instance_rows(features, inst, instance_classes(inst, label))
    return np.concatenate(list(gather_by_index(found).values()))


def write_styles(path: Path, opt: argparse.Namespace) -> None:
    """Cluster the features of a file and write the styles next to it."""
    rows = load_rows(path)
    if rows.shape[1] != 2 + opt.feat_num:
        raise UserError(
            f"{path}: features of length {rows.shape[1] - 2}, but --feat_num is {opt.feat_num}; "
            "give that length, or if the encoder has changed, encode again with --reencode"
        )
    styles = cluster(rows, opt.n_clusters, opt.seed)
    if not styles:
        raise UserError(f"{path}: no instance covers more than 1/64 of its image: no styles")
    clustered = path.with_name(f"features_clustered_{opt.n_clusters:03d}.npy")
    write_array(styles_to_rows(styles), clustered)
    record_encoder(clustered, recorded_checksum(path))
    report(rows, styles, opt)
    log(f"{len(rows)} instances in {path}, {sum(map(len, styles.values()))} styles in {clustered}")


def report(rows: np.ndarray, styles: dict[int, np.ndarray], opt: argparse.Namespace) -> None:
    """Log for each class how many instances and styles there are."""
    for label in np.unique(rows[:, 0]).astype(int).tolist():
        of_class = rows[rows[:, 0] == label]
        large = int((of_class[:, -1] > 0.5).sum())
        count = len(styles.get(label, []))
        name = class_name(label, opt.label_nc)
        note = "" if count == opt.n_clusters else f" (fewer than --n_clusters {opt.n_clusters})"
        log(f"  {name}: {len(of_class)} instances, {large} of them large, {count} styles{note}")


def main() -> object:
    return distributed.launch(encode, EncoderOptions().parse())


if __name__ == "__main__":
    run(main)

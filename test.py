"""Turn the label maps of a data set into photographs and show them on an HTML page.

    python test.py --name label2city_512p
    python test.py --name label2city_512p_feat --style car=3 --style sky=0
    python test.py --name label2city_512p_feat --all_styles car
    python test.py --name label2city_512p_feat --use_encoded_image --phase train
    python test.py --name label2city_512p --export_onnx label2city.onnx
    python test.py --name label2city_512p --onnx label2city.onnx --ort_provider cuda

The architecture and the data set are those of training (checkpoints/NAME/opt.json) unless flags
say otherwise. The page is results/NAME/PHASE_EPOCH/index.html.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.create import create_dataset, photographs
from data.files import picture_names, read_rgb
from data.loader import batches_in_order
from models import create_model
from models.build import uses_features
from models.inference_model import InferenceModel, cluster_path, to_pictures
from models.styles import (
    StyleChooser,
    Styles,
    instance_classes,
    load_styles,
    names_of,
    paint,
    style,
)
from options.base_options import run_dir
from options.test_options import TestOptions
from util import distributed
from util.errors import UserError, run
from util.files import make_folder
from util.pages.colours import CITYSCAPES_NAMES, class_id, label_picture, save_image
from util.pages.html import Page, Picture
from util.progress import bar, log
from util.setup import seed_everything, set_up_torch


def test(opt: argparse.Namespace, device: torch.device) -> None:
    """Render every scene of opt.phase and write the page."""
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    model = create_generator(opt, device)
    if opt.verbose and distributed.is_main():
        log(str(model))
    dataset = create_dataset(opt, training=False, load_photos=opt.use_encoded_image)
    dataset.scenes = dataset.scenes[: opt.how_many]
    photos = photographs(opt)
    names_of_scenes = picture_names(dataset.files["label"])
    names = [names_of_scenes[scene] for scene in dataset.scenes]
    looks = looks_of_styles(model, opt)

    folder = Path(opt.results_dir) / opt.name / f"{opt.phase}_{opt.which_epoch}"
    make_folder(folder / "images", "--results_dir")
    rank, world = distributed.rank(), distributed.world()
    mine = range(rank, len(dataset), world)
    rows: dict[int, list[Picture]] = {}
    with Writer(folder, opt) as writer, torch.inference_mode():
        progress = bar(total=len(mine), desc="pictures", unit="picture")
        for indices, batch in batches(dataset, opt, mine):
            rendered = [(look.name, model_pictures(model, batch, look.choose)) for look in looks]
            for k, index in enumerate(indices):
                label = batch["label"][k]
                colours = partial(label_picture, label, opt.label_nc, opt.ignore_label)
                pictures: dict[str, np.ndarray | Callable] = {"input_label": colours}
                pictures |= {name: images[k] for name, images in rendered}
                photo = photos.get(dataset.scenes[index])
                if photo is not None:
                    pictures["real_image"] = partial(fit, photo, label.shape[-1], label.shape[-2])
                rows[index] = writer.write(names[index], pictures)
                progress.update()
        progress.close()

    warn_missing(looks, model)
    everything = {k: row for part in distributed.gather(rows) for k, row in part.items()}
    if distributed.is_main():
        page = Page(folder, f"{opt.name}, {opt.phase}, epoch {opt.which_epoch}")
        for index in sorted(everything):
            page.row(everything[index], heading=names[index], width=opt.display_winsize)
        log(f"{len(everything)} scenes on the page {page.save()}")


def create_generator(opt: argparse.Namespace, device: torch.device) -> InferenceModel:
    """The generator of the run's weights, or with --onnx of that file."""
    if opt.onnx is None:
        return create_model(opt, device)
    from models.export import OnnxModel  # a rarely used package

    provider = opt.ort_provider or "cpu"
    return OnnxModel(opt, device, run_dir(opt), Path(opt.onnx), provider)


def export(opt: argparse.Namespace) -> None:
    """--export_onnx"""
    from models.export import export_onnx

    model = create_model(opt, torch.device("cpu"))
    apart = export_onnx(model, Path(opt.export_onnx))
    sizes = ", ".join("x".join(map(str, size)) for size in apart)
    log(
        f"{opt.export_onnx}: written; ONNX Runtime draws PyTorch's pictures, checked at {sizes}: "
        f"{max(apart.values())} grey levels apart at most"
    )


# -- scenes ----------------------------------------------------------------------------------


def batches(dataset, opt: argparse.Namespace, mine: range) -> Iterator[tuple[list[int], dict]]:
    """(indices, batch) over this process's share of the scenes."""
    share = torch.utils.data.Subset(dataset, list(mine))
    groups = [mine[i : i + opt.batchSize] for i in range(0, len(mine), opt.batchSize)]
    loader = batches_in_order(share, opt.batchSize, opt.nThreads, bool(opt.gpu_ids))
    return zip(map(list, groups), loader)


def fit(photo: Path, width: int, height: int) -> np.ndarray:
    """A photograph at the size of its label map on the page, (H, W, 3) uint8."""
    return np.asarray(read_rgb(photo).resize((width, height), Image.Resampling.BICUBIC))


# -- styles ----------------------------------------------------------------------------------


@dataclass
class Look:
    """One way to render every scene: the picture's name and what chooses the features."""

    name: str
    choose: Callable[[dict], torch.Tensor | None]
    chooser: StyleChooser | None = None


def looks_of_styles(model: InferenceModel, opt: argparse.Namespace) -> list[Look]:
    """One look, or with --all_styles one for each style of that class."""
    if not uses_features(opt):
        return [Look("synthesized_image", lambda batch: None)]
    if opt.load_features:
        return [Look("synthesized_image", lambda batch: batch["feat"])]
    if opt.use_encoded_image:
        model.load_encoder()
        return [Look("synthesized_image", lambda batch: encode_batch(model, batch))]

    fixed: dict[int, np.ndarray] = {}
    for request in opt.style_from:
        fixed |= look_of_instance(model, request, opt)
    needs_clusters = not fixed or opt.style or opt.all_styles
    path = cluster_path(model.folder, opt.cluster_path)
    styles = load_styles(path, opt.feat_num) if needs_clusters or path.is_file() else {}
    for request in opt.style:
        fixed |= chosen_style(styles, request, opt.label_nc)
    if opt.all_styles is None:
        return [style_look("synthesized_image", model, StyleChooser(styles, fixed, opt.seed))]
    label = class_id(opt.all_styles, opt.label_nc)
    style(styles, label, 0, opt.all_styles)  # refuses a class without styles
    return [
        style_look(f"style_{k}", model, StyleChooser(styles, {**fixed, label: vector}, opt.seed))
        for k, vector in enumerate(styles[label])
    ]


def style_look(name: str, model: InferenceModel, chooser: StyleChooser) -> Look:
    return Look(name, lambda batch: styled(model, batch, chooser), chooser)


def styled(model: InferenceModel, batch: dict, chooser: StyleChooser) -> torch.Tensor:
    """Feature maps (B, feat_num, H, W) of a batch with a style for every instance."""
    maps = []
    for label, inst, path in zip(batch["label"], batch.get("inst", batch["label"]), batch["path"]):
        regions = model.regions(label[None], inst[None])[0, 0].numpy()
        classes = instance_classes(regions, label[0].numpy() if model.opt.label_nc else None)
        features = chooser.choose(classes, Path(path).stem)
        maps.append(torch.from_numpy(paint(regions, features, model.opt.feat_num)))
    return torch.stack(maps)


def encode_batch(model: InferenceModel, batch: dict) -> torch.Tensor:
    return model.encode(batch["image"], model.regions(batch["label"], batch.get("inst")))


def model_pictures(
    model: InferenceModel, batch: dict, choose: Callable[[dict], torch.Tensor | None]
) -> np.ndarray:
    """(B, H, W, 3) uint8"""
    return to_pictures(model.generate(batch["label"], batch.get("inst"), choose(batch)))


def chosen_style(styles: Styles, request: str, label_nc: int) -> dict[int, np.ndarray]:
    """--style CLASS=K as class -> feature."""
    name, _, number = request.partition("=")
    if not number.isdigit():
        raise UserError(f"--style {request}: expected CLASS=K, e.g. car=3")
    label = class_id(name, label_nc)
    return {label: style(styles, label, int(number), f"--style {request}: class {name}")}


def look_of_instance(
    model: InferenceModel, request: str, opt: argparse.Namespace
) -> dict[int, np.ndarray]:
    """--style_from SCENE,ID as class -> the feature that the encoder finds in that instance."""
    scene, _, number = request.rpartition(",")
    if not scene or not number.isdigit():
        raise UserError(f"--style_from {request}: expected SCENE,ID, e.g. aachen_0_19,26001")
    item = find_scene(scene, opt)
    batch = {kind: value[None] for kind, value in item.items() if isinstance(value, torch.Tensor)}
    regions = model.regions(batch["label"], batch.get("inst"))[0, 0].numpy()
    where = np.argwhere(regions == int(number))
    if not len(where):
        raise UserError(f"--style_from {request}: no instance {number} in {item['path']}")
    y, x = where[0]
    features = encode_batch(model, batch)[0, :, y, x].cpu().numpy()
    label = item["label"][0].numpy() if opt.label_nc else None
    return {instance_classes(regions, label)[int(number)]: features}


def find_scene(name: str, opt: argparse.Namespace) -> dict:
    """The scene of that name with its photograph, in this phase or in "train"."""
    problems: list[str] = []
    for phase in dict.fromkeys([opt.phase, "train"]):
        asked = argparse.Namespace(**{**vars(opt), "phase": phase, "max_dataset_size": None})
        try:
            dataset = create_dataset(asked, training=False)
        except UserError as error:  # most often a phase without photographs
            problems.append(str(error))
            continue
        for index, scene in enumerate(dataset.scenes):
            if name in (scene, Path(scene).name, dataset.files["label"][scene].stem):
                item = dataset[index]
                if isinstance(item, UserError):
                    raise item
                return item
    raise UserError(
        f"--style_from {name}: no scene of that name with a photograph in {opt.dataroot} "
        f"({'; '.join([f'{opt.phase} or train', *problems])})"
    )


def warn_missing(looks: list[Look], model: InferenceModel) -> None:
    mine = set().union(*(look.chooser.missing for look in looks if look.chooser))
    missing = set().union(*distributed.gather(mine))
    names = CITYSCAPES_NAMES if model.opt.label_nc == 35 else []
    if missing and distributed.is_main():
        log(
            f"warning: no styles for {names_of(missing, names)}: no large instance was clustered; "
            "their features are zero"
        )


# -- results ---------------------------------------------------------------------------------


class Writer:
    """Saves pictures in the background, so that the device never waits for a disk."""

    def __init__(self, folder: Path, opt: argparse.Namespace) -> None:
        self.folder = folder
        self.suffix = opt.image_format
        self.aspect_ratio = opt.aspect_ratio
        self.pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1))
        self.pending: list = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for job in self.pending:
                job.result()  # raises what went wrong in the background
        finally:
            self.pool.shutdown()

    def write(self, name: str, pictures: dict[str, np.ndarray | Callable]) -> list[Picture]:
        """Queue the pictures of a scene, or functions that give them; returns a row of the page."""
        row = []
        for kind, picture in pictures.items():
            path = Path("images") / f"{name}_{kind}.{self.suffix}"
            self.pending.append(self.pool.submit(self._save, picture, self.folder / path))
            row.append(Picture(path, kind))
        while len(self.pending) > 64:  # keep memory bounded when disks are slow
            self.pending.pop(0).result()
        return row

    def _save(self, picture: np.ndarray | Callable, path: Path) -> None:
        array = picture() if callable(picture) else picture
        if self.aspect_ratio != 1:
            height, width = array.shape[:2]
            size = max(1, round(width * self.aspect_ratio)), height
            array = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC))
        save_image(array, path)


def main() -> None:
    opt = TestOptions().parse()
    if opt.export_onnx:
        export(opt)
    else:
        distributed.launch(test, opt)


if __name__ == "__main__":
    run(main)

"""Generate images from the label maps of a data set and show them on an HTML page.

    python test.py --name label2city_512p
    python test.py --name label2city_512p_feat --style car=3 --style sky=0
    python test.py --name label2city_512p_feat --all_styles car
    python test.py --name label2city_512p_feat --use_encoded_image --phase train
    python test.py --name label2city_512p --export_onnx label2city.onnx
    python test.py --name label2city_512p --onnx label2city.onnx --ort_provider cuda

The architecture and the data set are those of training (checkpoints/NAME/opt.json) unless flags
say otherwise. The page is results/NAME/PHASE_EPOCH/index.html; shown_images tells what is on it.
"""

import argparse
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.create import create_dataset, photographs
from data.files import picture_names, read_rgb
from data.shares import of_all_scenes, own_batches
from models import create_model
from models.build import uses_features
from models.inference_model import InferenceModel, cluster_path, to_pictures
from models.styles import StyleChooser, instance_classes, load_styles, names_of, paint, style
from models.tiling import Tiling
from options.base_options import run_dir
from options.test_options import TestOptions
from util import distributed
from util.errors import UserError, run
from util.files import make_folder
from util.pages.colours import CITYSCAPES_NAMES, class_id, label_picture, save_image
from util.pages.html import Page, Picture
from util.parallel import background
from util.progress import log
from util.setup import seed_everything, set_up_torch


def test(opt: argparse.Namespace, device: torch.device) -> None:
    """Generate the images of every scene of opt.phase and write the page."""
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    model = create_generator(opt, device)
    if opt.verbose and distributed.is_main():
        log(str(model))
    dataset = create_dataset(opt, training=False, load_photos=opt.use_encoded_image)
    dataset.scenes = dataset.scenes[: opt.how_many]
    photos = photographs(opt)
    names = picture_names(dataset.files["label"])
    choosers = style_choosers(model, opt)
    sources = feature_sources(model, opt, choosers)

    folder = Path(opt.results_dir) / opt.name / f"{opt.phase}_{opt.which_epoch}"
    make_folder(folder / "images", "--results_dir")
    rows: dict[int, list[Picture]] = {}
    with background() as submit, torch.inference_mode():
        for indices, batch in own_batches(dataset, opt, "images", opt.batchSize):
            inputs = batch["label"], batch.get("inst")
            generated = {
                name: to_pictures(model.generate(*inputs, features(batch)))
                for name, features in sources.items()
            }
            for k, index in enumerate(indices):
                scene = dataset.scenes[index]
                maps = {kind: values[k] for kind, values in batch.items()}
                images = {name: images[k] for name, images in generated.items()}
                shown = shown_images(opt, maps, images, photos.get(scene))
                rows[index] = write_row(shown, names[scene], folder, opt, submit)

    warn_missing(choosers, opt)
    rows = of_all_scenes(rows)
    if distributed.is_main():
        page = Page(folder, f"{opt.name}, {opt.phase}, epoch {opt.which_epoch}")
        for index, row in rows.items():
            page.row(row, heading=names[dataset.scenes[index]], width=opt.display_winsize)
        log(f"{len(rows)} scenes on the page {page.save()}")


def shown_images(
    opt: argparse.Namespace, maps: dict, generated: dict[str, np.ndarray], photo: Path | None
) -> dict[str, np.ndarray | Callable[[], np.ndarray]]:
    """What the page shows of a scene, from left to right. Add or leave out images here.

    maps: the scene as AlignedDataset gives it. generated: the generator's images, by name. photo:
    the photograph's file, if there is one. Returns name -> image (H, W, 3) uint8, or a function
    that makes it, for work in the background. Each is also written to images/SCENE_NAME.png.
    """
    label = maps["label"]
    images = {"input_label": partial(label_picture, label, opt.label_nc, opt.ignore_label)}
    images |= generated
    if photo is not None:
        images["real_image"] = partial(read_resized, photo, label.shape[-1], label.shape[-2])
    return images


def create_generator(opt: argparse.Namespace, device: torch.device) -> InferenceModel:
    """The generator of the run's weights, or with --onnx of that file."""
    if opt.onnx is None:
        model = create_model(opt, device)
        if opt.tile:
            folder = make_folder(Path(opt.tile_dir), "--tile_dir") if opt.tile_dir else None
            model.tiling = Tiling(opt.tile, folder)
        return model
    from models.export import OnnxModel  # a rarely used package

    return OnnxModel(opt, device, run_dir(opt), Path(opt.onnx), opt.ort_provider or "cpu")


def export(opt: argparse.Namespace) -> None:
    """--export_onnx"""
    from models.export import export_onnx

    model = create_model(opt, torch.device("cpu"))
    differences = export_onnx(model, Path(opt.export_onnx))
    sizes = ", ".join("x".join(map(str, size)) for size in differences)
    log(
        f"{opt.export_onnx}: written; ONNX Runtime generates PyTorch's images, checked at {sizes}: "
        f"{max(differences.values())} grey levels apart at most"
    )


# -- images ----------------------------------------------------------------------------------


def read_resized(path: Path, width: int, height: int) -> np.ndarray:
    """A photograph at the size of its label map, (H, W, 3) uint8."""
    return np.asarray(read_rgb(path).resize((width, height), Image.Resampling.BICUBIC))


def write_row(
    images: dict, stem: str, folder: Path, opt: argparse.Namespace, submit: Callable
) -> list[Picture]:
    """Have the images of a scene written in the background. Returns the row of the page."""
    row = []
    for name, image in images.items():
        path = Path("images") / f"{stem}_{name}.{opt.image_format}"
        submit(save, image, folder / path, opt.aspect_ratio)
        row.append(Picture(path, caption=name))
    return row


def save(image: np.ndarray | Callable[[], np.ndarray], path: Path, aspect_ratio: float) -> None:
    """Write an image, or what a function returns, widened by aspect_ratio."""
    array = image() if callable(image) else image
    if aspect_ratio != 1:
        height, width = array.shape[:2]
        size = max(1, round(width * aspect_ratio)), height
        array = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BICUBIC))
    save_image(array, path)


# -- features and styles ---------------------------------------------------------------------


def feature_sources(
    model: InferenceModel, opt: argparse.Namespace, choosers: dict[str, StyleChooser]
) -> dict[str, Callable[[dict], Tensor | None]]:
    """For each image of a scene, by name: from a batch to its feature maps (B, feat_num, H, W),
    or to None for models without features."""
    if choosers:
        return {name: partial(styled, model, chooser) for name, chooser in choosers.items()}
    if opt.load_features:
        return {"synthesized_image": itemgetter("feat")}
    if opt.use_encoded_image:
        model.load_encoder()
        return {"synthesized_image": partial(encode, model)}
    return {"synthesized_image": lambda batch: None}


def style_choosers(model: InferenceModel, opt: argparse.Namespace) -> dict[str, StyleChooser]:
    """What chooses the styles of each image, by name: one, or with --all_styles one for each style
    of that class; none if there is nothing to choose."""
    if not uses_features(opt) or opt.load_features or opt.use_encoded_image:
        return {}
    fixed: dict[int, np.ndarray] = {}
    for request in opt.style_from:
        fixed |= style_of_instance(model, request, opt)
    needs_clusters = not fixed or opt.style or opt.all_styles
    path = cluster_path(model.folder, opt.cluster_path)
    styles = load_styles(path, opt.feat_num) if needs_clusters or path.is_file() else {}
    for request in opt.style:
        name, _, number = request.partition("=")
        if not number.isdigit():
            raise UserError(f"--style {request}: expected CLASS=K, e.g. car=3")
        label = class_id(name, opt.label_nc)
        fixed[label] = style(styles, label, int(number), f"--style {request}: class {name}")
    if opt.all_styles is None:
        return {"synthesized_image": StyleChooser(styles, fixed, opt.seed)}
    label = class_id(opt.all_styles, opt.label_nc)
    style(styles, label, 0, opt.all_styles)  # refuses a class without styles
    return {
        f"style_{k}": StyleChooser(styles, {**fixed, label: vector}, opt.seed)
        for k, vector in enumerate(styles[label])
    }


def styled(model: InferenceModel, chooser: StyleChooser, batch: dict) -> Tensor:
    """Feature maps (B, feat_num, H, W) of a batch with a style for every instance."""
    maps = []
    for label, inst, path in zip(batch["label"], batch.get("inst", batch["label"]), batch["path"]):
        regions = model.regions(label[None], inst[None])[0, 0].numpy()
        classes = instance_classes(regions, label[0].numpy() if model.opt.label_nc else None)
        features = chooser.choose(classes, Path(path).stem)
        maps.append(torch.from_numpy(paint(regions, features, model.opt.feat_num)))
    return torch.stack(maps)


def encode(model: InferenceModel, batch: dict) -> Tensor:
    """Feature maps (B, feat_num, H, W) of a batch's photographs."""
    return model.encode(batch["image"], model.regions(batch["label"], batch.get("inst")))


def style_of_instance(
    model: InferenceModel, request: str, opt: argparse.Namespace
) -> dict[int, np.ndarray]:
    """--style_from SCENE,ID as class -> the feature that the encoder finds in that instance."""
    scene, _, number = request.rpartition(",")
    if not scene or not number.isdigit():
        raise UserError(f"--style_from {request}: expected SCENE,ID, e.g. aachen_0_19,26001")
    item = find_scene(scene, opt)
    batch = {kind: value[None] for kind, value in item.items() if isinstance(value, Tensor)}
    regions = model.regions(batch["label"], batch.get("inst"))[0, 0].numpy()
    where = np.argwhere(regions == int(number))
    if not len(where):
        raise UserError(f"--style_from {request}: no instance {number} in {item['path']}")
    y, x = where[0]
    label = item["label"][0].numpy() if opt.label_nc else None
    feature = encode(model, batch)[0, :, y, x].cpu().numpy()
    return {instance_classes(regions, label)[int(number)]: feature}


def find_scene(name: str, opt: argparse.Namespace) -> dict:
    """The scene of that name with its photograph, in this phase or in "train"."""
    problems: list[str] = []
    for phase in dict.fromkeys([opt.phase, "train"]):
        flags = argparse.Namespace(**{**vars(opt), "phase": phase, "max_dataset_size": None})
        try:
            dataset = create_dataset(flags, training=False)
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


def warn_missing(choosers: dict[str, StyleChooser], opt: argparse.Namespace) -> None:
    """Name the classes that were met without a style, in any process."""
    own = set().union(*(chooser.missing for chooser in choosers.values()))
    missing = set().union(*distributed.gather(own))
    names = CITYSCAPES_NAMES if opt.label_nc == 35 else []
    if missing and distributed.is_main():
        log(
            f"warning: no styles for {names_of(missing, names)}: no large instance was clustered; "
            "their features are zero"
        )


def main() -> object:
    opt = TestOptions().parse()
    return export(opt) if opt.export_onnx else distributed.launch(test, opt)


if __name__ == "__main__":
    run(main)

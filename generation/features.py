"""Where the features of generated instances come from: files, photographs, or chosen styles."""

import argparse
from collections.abc import Callable, Container
from functools import partial
from operator import itemgetter
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from data.create import create_dataset
from data.files import image_names
from data.loader import collate
from models.build import uses_features
from models.inference_model import InferenceModel
from models.run_encoder import cluster_path, run_styles
from models.styles import StyleChooser, get_style, instance_classes, paint
from util import distributed
from util.errors import UserError, brief
from util.pages.colours import class_id, class_name
from util.progress import log_main


def feature_sources(
    model: InferenceModel, opt: argparse.Namespace, choosers: dict[str, StyleChooser]
) -> dict[str, Callable[[dict], Tensor | None]]:
    """For each image of a scene, by name: a function from a batch to its feature maps
    (B, feat_num, H, W), or to None for models without features."""
    if choosers:
        return {name: partial(style_maps, model, chooser) for name, chooser in choosers.items()}
    if opt.load_features:
        return {"synthesized_image": itemgetter("feat")}
    if opt.use_encoded_image:
        model.load_encoder()
        return {"synthesized_image": model.encode_batch}
    return {"synthesized_image": lambda batch: None}


def style_choosers(model: InferenceModel, opt: argparse.Namespace) -> dict[str, StyleChooser]:
    """The choosers of each image's styles, by name: one, or with --all_styles one for each style of
    that class; none if there is nothing to choose."""
    if not uses_features(opt) or opt.load_features or opt.use_encoded_image:
        return {}
    fixed: dict[int, np.ndarray] = {}
    for request in opt.style_from:
        label, vector = style_of_instance(model, request, opt)
        refuse_second_style(fixed, label, opt)
        fixed[label] = vector
    needs_clusters = not fixed or opt.style or opt.all_styles
    has_clusters = cluster_path(model.folder, opt.cluster_path).is_file()
    styles = run_styles(model.folder, opt) if needs_clusters or has_clusters else {}
    for request in opt.style:
        name, _, number = request.partition("=")
        if not number.isdecimal():
            raise UserError(f"--style {request}: expected CLASS=K, e.g. car=3")
        label = class_id(name, opt.label_nc)
        refuse_second_style(fixed, label, opt)
        fixed[label] = get_style(styles, label, int(number), f"--style {request}: class {name}")
    if opt.all_styles is None:
        return {"synthesized_image": StyleChooser(styles, fixed, opt.seed)}
    label = class_id(opt.all_styles, opt.label_nc)
    refuse_second_style(fixed, label, opt)
    get_style(styles, label, 0, opt.all_styles)  # refuses a class without styles
    return {
        f"style_{k}": StyleChooser(styles, {**fixed, label: vector}, opt.seed)
        for k, vector in enumerate(styles[label])
    }


def refuse_second_style(fixed: Container[int], label: int, opt: argparse.Namespace) -> None:
    """Raises UserError for a class whose style is fixed already."""
    if label in fixed:
        raise UserError(
            f"{class_name(label, opt.label_nc)} is named twice by --style, --style_from and "
            "--all_styles; name it once"
        )


def style_maps(model: InferenceModel, chooser: StyleChooser, batch: dict) -> Tensor:
    """Feature maps (B, feat_num, H, W) of a batch with a style for every instance."""
    maps = []
    all_regions = model.regions(batch["label"], batch.get("inst"))[:, 0].numpy()
    for label, regions, path in zip(batch["label"], all_regions, batch["path"]):
        classes = instance_classes(regions, label[0].numpy() if model.opt.label_nc else None)
        features = chooser.choose(classes, Path(path).stem)
        maps.append(torch.from_numpy(paint(regions, features, model.opt.feat_num)))
    return torch.stack(maps)


def style_of_instance(
    model: InferenceModel, request: str, opt: argparse.Namespace
) -> tuple[int, np.ndarray]:
    """--style_from SCENE,ID as the instance's class and the feature that the encoder finds."""
    scene, _, number = request.rpartition(",")
    if not scene or not number.isdecimal():
        raise UserError(f"--style_from {request}: expected SCENE,ID, e.g. aachen_0_19,26001")
    batch = find_scene(scene, opt)
    maps = model.regions(batch["label"], batch.get("inst"))
    regions = maps[0, 0].numpy()
    inst = batch["inst"][0, 0].numpy() if "inst" in batch else regions
    ids = np.stack([inst, regions]).astype(np.int64) & 0xFFFFFFFF  # negative from 2**31 on
    places = np.argwhere(ids == int(number))
    if not len(places):
        raise UserError(f"--style_from {request}: that scene has no instance {number}")
    _, y, x = places[0]
    label = batch["label"][0, 0].numpy() if opt.label_nc else None
    feature = model.encode_regions(batch["image"], maps)[0, :, y, x].numpy()
    return instance_classes(regions, label)[int(regions[y, x])], feature


def find_scene(name: str, opt: argparse.Namespace) -> dict:
    """The scene of that name with its photograph, in this phase or in "train": a batch of one."""
    name, problems = normalize("NFC", name), []
    for phase in dict.fromkeys([opt.phase, "train"]):
        flags = argparse.Namespace(**{**vars(opt), "phase": phase, "max_dataset_size": None})
        try:
            dataset = create_dataset(flags, training=False)
        except UserError as error:  # most often a phase without photographs
            problems.append(str(error))
            continue
        images = image_names(dataset.files["label"])
        found = []
        for scene in dataset.scenes:
            file = dataset.files["label"][scene].stem
            names = scene, Path(scene).name, *(normalize("NFC", n) for n in (file, images[scene]))
            if name in names:
                found.append(scene)
        if len(found) > 1 and name not in found:
            raise UserError(
                f"--style_from {name}: could be {brief(found)}; give one of these names"
            )
        if found:
            scene = name if name in found else found[0]
            batch = collate([dataset[dataset.scenes.index(scene)]])
            if isinstance(batch, UserError):
                raise batch
            return batch
    raise UserError(
        f"--style_from {name}: no scene of that name with a photograph in {opt.dataroot} "
        f"({'; '.join([f'{opt.phase} or train', *problems])})"
    )


def warn_missing(choosers: dict[str, StyleChooser], opt: argparse.Namespace) -> None:
    """Name the classes for which any process found no style."""
    own = set().union(*(chooser.missing for chooser in choosers.values()))
    missing = set().union(*distributed.gather(own))
    names = ", ".join(f"{class_name(c, opt.label_nc)} ({c})" for c in sorted(missing))
    if missing:
        clustered = any(chooser.styles for chooser in choosers.values())
        why = "no large instance was clustered" if clustered else f"there is no {opt.cluster_path}"
        log_main(f"warning: no styles for {names}: {why}; their features are zero")

"""Generate images from the label maps of a data set and show them on an HTML page.

    python test.py --name label2city_512p
    python test.py --name label2city_512p_feat --style car=3 --style sky=0
    python test.py --name label2city_512p_feat --all_styles car
    python test.py --name label2city_512p_feat --use_encoded_image --phase train
    python test.py --name label2city_512p --input maps/ --input_inst instances/ --output images/
    python test.py --name label2city_512p --export_onnx label2city.onnx
    python test.py --name label2city_512p --onnx label2city.onnx --ort_provider cuda

The architecture and the data set are those of training (checkpoints/NAME/opt.json) unless flags
say otherwise. The page is results/NAME/PHASE_EPOCH/index.html; shown_images tells what is on it.
"""

import argparse
from collections.abc import Callable, Collection, Iterable
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.arrays import geo_tags, resize_array, write_array
from data.create import create_dataset, photographs
from data.files import picture_names
from data.input_files import InputFiles, create_input_files
from data.kinds import image_kind
from data.loader import read_ahead
from data.shares import of_all_scenes, own_batches
from data.values import Values, side_values
from models import create_model
from models.build import uses_features
from models.inference_model import InferenceModel, cluster_path
from models.styles import StyleChooser, instance_classes, load_styles, names_of, paint, style
from models.tiling import Tiling
from options.base_options import run_dir
from options.test_options import TestOptions
from util import distributed
from util.errors import UserError, out_of_memory, print_error, run
from util.files import make_folder
from util.pages.colours import CITYSCAPES_NAMES, class_id, label_picture, save_image, to_image
from util.pages.html import Page, Picture
from util.parallel import background
from util.progress import bar, log
from util.setup import seed_everything, set_up_torch


def test(opt: argparse.Namespace, device: torch.device) -> None:
    """Generate the images of every scene of opt.phase and write the page."""
    model = create_generator(opt, device)
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
            generated = generate(model, sources, batch)
            for k, index in enumerate(indices):
                scene = dataset.scenes[index]
                maps = {kind: values[k] for kind, values in batch.items()}
                images = {name: images[k] for name, images in generated.items()}
                shown = shown_images(opt, maps, images, photos.get(scene))
                paths = output_paths(opt, names[scene], shown)
                source = dataset.files["label"][scene]
                rows[index] = write_row(shown, paths, folder, opt, submit, source)

    warn_missing(choosers, opt)
    rows = of_all_scenes(rows)
    if distributed.is_main():
        title = f"{opt.name}, {opt.phase}, epoch {opt.which_epoch}"
        shown_as = side_values(opt, "output").describe_view()
        title += f" (shown: {shown_as})" if shown_as else ""
        write_page(rows, [names[scene] for scene in dataset.scenes], folder, title, opt)


def generate_from_files(opt: argparse.Namespace, device: torch.device) -> None:
    """--input: write_images_of_files by the run's generator."""
    write_images_of_files(create_generator(opt, device), opt)


def write_images_of_files(model: InferenceModel, opt: argparse.Namespace) -> None:
    """Generate the images of the files of --input into --output, and with --page the page.

    A file that cannot be used is named and left out; a UserError counts them at the end.
    """
    dataset = create_input_files(opt)
    names = list(picture_names(dataset.files["label"]).values())
    choosers = style_choosers(model, opt)
    sources = feature_sources(model, opt, choosers)

    folder = Path(opt.output)
    make_folder(folder / "images" if opt.page else folder, "--output")
    views = [] if side_values(opt, "output").is_rgb8 else [f"{name}_view" for name in sources]
    usual = [*(["input_label", *views] if opt.page else []), *sources]
    paths = [output_paths(opt, name, usual, sources) for name in names]
    refuse_overwriting(dataset, (folder / path for row in paths for path in row.values()))
    own = range(distributed.rank(), len(dataset), distributed.world())
    rows = {}
    if opt.skip_existing:
        there = [i for i in own if all((folder / path).is_file() for path in paths[i].values())]
        rows = {i: page_row(paths[i]) for i in there}
    wanted = [i for i in own if i not in rows]
    failed = 0
    batches = read_ahead(dataset, [[i] for i in wanted], opt.nThreads, bool(opt.gpu_ids))
    with background() as submit, torch.inference_mode():
        for i, batch in bar(zip(wanted, batches), total=len(wanted), desc="images", unit="image"):
            try:
                images = generate_one(model, sources, batch)
            except UserError as error:
                print_error(error)
                failed += 1
                continue
            if opt.page:
                maps = {kind: values[0] for kind, values in batch.items()}
                images = shown_images(opt, maps, images, None)
            files = output_paths(opt, names[i], images, sources)
            source = dataset.files["label"][dataset.scenes[i]]
            rows[i] = write_row(images, files, folder, opt, submit, source)

    warn_missing(choosers, opt)
    rows, failed = of_all_scenes(rows), sum(distributed.gather(failed))
    if not distributed.is_main():
        return
    if opt.page:
        write_page(rows, names, folder, f"{opt.name}, {opt.input}, epoch {opt.which_epoch}", opt)
    log(f"{len(rows)} label maps have their images in {folder}")
    if failed:
        raise UserError(f"{failed} of {len(dataset)} label maps were left out, see above")


def shown_images(
    opt: argparse.Namespace, maps: dict, generated: dict[str, np.ndarray], photo: Path | None
) -> dict[str, np.ndarray | Callable[[], np.ndarray]]:
    """What the page shows of a scene, from left to right. Add or leave out images here.

    maps: the scene as AlignedDataset gives it. generated: the generator's images, by name. photo:
    the photograph's file, if there is one. Returns name -> image (H, W, 3) uint8, or a function
    that makes it, for work in the background. Each is also written to images/SCENE_NAME.png.
    Generated images other than 8-bit RGB are written as they are, and shown as NAME_view.
    """
    label = maps["label"]
    images = {"input_label": partial(label_picture, label, opt.label_nc, opt.ignore_label)}
    images |= generated
    values = side_values(opt, "output")
    if not values.is_rgb8:
        images |= {f"{n}_view": partial(view, image, values) for n, image in generated.items()}
    if photo is not None:
        images["real_image"] = partial(read_resized, photo, values, label.shape[:-3:-1])
    return images


def create_generator(opt: argparse.Namespace, device: torch.device) -> InferenceModel:
    """The generator of the run's weights, or with --onnx of that file."""
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    if opt.onnx is None:
        model = create_model(opt, device)
        if opt.verbose and distributed.is_main():
            log(str(model))
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


def generate(model: InferenceModel, sources: dict, batch: dict) -> dict[str, np.ndarray]:
    """The images (B, H, W, C) of a batch, by name; C and the type as in training."""
    inputs = batch["label"], batch.get("inst")
    return {
        name: model.to_arrays(model.generate(*inputs, features(batch), batch.get("cond")))
        for name, features in sources.items()
    }


def generate_one(
    model: InferenceModel, sources: dict, batch: dict | UserError
) -> dict[str, np.ndarray]:
    """The images (H, W, C) of a batch of one, by name. Raises UserError if it could not be read or
    is too large for the memory."""
    if isinstance(batch, UserError):
        raise batch
    try:
        return {name: images[0] for name, images in generate(model, sources, batch).items()}
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"{batch['path'][0]}: out of memory; --tile PIXELS needs less") from error


# -- images ----------------------------------------------------------------------------------


def read_resized(photo: Path, values: Values, size: tuple[int, int]) -> np.ndarray:
    """A photograph at the size (width, height) of its label map, to look at: (H, W, 3) uint8."""
    return view(image_kind(values, "output").load(photo, size), values)


def view(image: np.ndarray, values: Values) -> np.ndarray:
    """An image (H, W, C) of any numbers to look at: (H, W, 3) uint8."""
    return image if values.is_rgb8 else to_image(values.to_tensor(image))


def write_row(
    images: dict,
    paths: dict[str, Path],
    folder: Path,
    opt: argparse.Namespace,
    submit: Callable,
    source: Path,
) -> list[Picture]:
    """Have the images of a scene written in the background. Returns the row of the page.

    source: the label map, whose georeference TIFF files get."""
    for name, image in images.items():
        submit(save, image, folder / paths[name], opt.aspect_ratio, source)
    return page_row(paths)


def output_paths(
    opt: argparse.Namespace, stem: str, images: Iterable[str], beside: Collection[str] = ()
) -> dict[str, Path]:
    """The files of a scene's images, by name: images/STEM_NAME.png. Those named in `beside` lie
    beside that folder; one alone is STEM.png."""
    paths = {}
    for name in images:
        ending = "" if [name] == list(beside) else f"_{name}"
        is_shown = name in ("input_label", "real_image") or name.endswith("_view")
        shown_as = "jpg" if opt.image_format == "jpg" else "png"
        path = Path(f"{stem}{ending}.{shown_as if is_shown else opt.image_format}")
        paths[name] = path if name in beside else Path("images") / path
    return paths


def refuse_overwriting(dataset: InputFiles, outputs: Iterable[Path]) -> None:
    """Raise UserError if an output is one of the files to be read."""
    inputs = {path.resolve() for files in dataset.files.values() for path in files.values()}
    for path in outputs:
        if path.resolve() in inputs:
            raise UserError(f"{path} is an input, and would be overwritten; give another --output")


def page_row(paths: dict[str, Path]) -> list[Picture]:
    """The row of the page with a scene's images."""
    return [
        Picture(path, caption=name)
        for name, path in paths.items()
        if path.suffix in (".png", ".jpg") and f"{name}_view" not in paths
    ]


def write_page(
    rows: dict[int, list[Picture]],
    names: list[str],
    folder: Path,
    title: str,
    opt: argparse.Namespace,
) -> None:
    """Write folder/index.html; names: the headings of rows, by their index."""
    page = Page(folder, title)
    for index, row in rows.items():
        page.row(row, heading=names[index], width=opt.display_winsize)
    log(f"{len(rows)} scenes on the page {page.save()}")


def save(
    image: np.ndarray | Callable[[], np.ndarray], path: Path, aspect_ratio: float, source: Path
) -> None:
    """Write an image, or what a function returns, widened by aspect_ratio."""
    array = image() if callable(image) else image
    if aspect_ratio != 1:
        height, width = array.shape[:2]
        array = resize_array(array, (max(1, round(width * aspect_ratio)), height), smooth=True)
    if (
        path.suffix in (".png", ".jpg")
        and array.dtype == np.uint8
        and array.shape[2:] in ((), (3,))
    ):
        save_image(array, path)
    else:
        write_array(array, path, geo_tags(source))


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
    unsigned = regions.astype(np.int64) & 0xFFFFFFFF  # ids from 2**31 on are negative
    where = np.argwhere(unsigned == int(number))
    if not len(where):
        raise UserError(f"--style_from {request}: no instance {number} in {item['path']}")
    y, x = where[0]
    label = item["label"][0].numpy() if opt.label_nc else None
    feature = encode(model, batch)[0, :, y, x].cpu().numpy()
    return {instance_classes(regions, label)[int(regions[y, x])]: feature}


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
    if opt.export_onnx:
        return export(opt)
    return distributed.launch(generate_from_files if opt.input else test, opt)


if __name__ == "__main__":
    run(main)

"""Generate images from the label maps of a data set and show them on an HTML page.

    python test.py --name label2city_512p
    python test.py --name label2city_512p_feat --style car=3 --style sky=0
    python test.py --name label2city_512p_feat --all_styles car
    python test.py --name label2city_512p_feat --use_encoded_image --phase train
    python test.py --name label2city_512p --input maps/ --input_inst instances/ --output images/
    python test.py --name label2city_512p --export_onnx label2city.onnx
    python test.py --name label2city_512p --onnx label2city.onnx --ort_provider cuda

The architecture and the data set are those of training (checkpoints/NAME/opt.json) unless flags
say otherwise. The page is results/NAME/PHASE_EPOCH/index.html; shown_images decides what it shows.
"""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data.create import create_dataset, photographs
from data.input_files import InputFiles
from data.kinds import image_kind
from data.loader import read_scenes
from data.values import Values, image_values
from generation.features import feature_sources, style_choosers, warn_missing
from generation.results import Image, Results
from models import create_model
from models.inference_model import InferenceModel
from models.tiling import Tiling
from options.test_options import TestOptions
from util import distributed
from util.errors import UserError, out_of_memory, print_error, run
from util.files import checksum_of, make_folder
from util.pages.colours import label_image, to_image
from util.parallel import background
from util.progress import log, log_main
from util.run.checkpoints import run_dir, weights_file
from util.setup import seed_everything, set_up_torch


def test(opt: argparse.Namespace, device: torch.device) -> None:
    """Write the images that the run's generator makes, and their page."""
    write_images(create_generator(opt, device), opt)


def write_images(model: InferenceModel, opt: argparse.Namespace) -> None:
    """Generate the images of every scene of the data set, or of --input, and write the page.

    A file of --input that cannot be used is reported and left out.
    """
    if opt.input:
        dataset = InputFiles(opt)
        photos = {}
    else:
        dataset = create_dataset(opt, training=False, load_photos=opt.use_encoded_image)
        photos = photographs(opt)
        torch.backends.cudnn.benchmark &= dataset.has_one_size  # see set_up_torch
    dataset.scenes = dataset.scenes[: opt.how_many]
    choosers = style_choosers(model, opt)
    sources = feature_sources(model, opt, choosers)
    results = Results(opt, dataset, list(sources), shown_names(opt, sources))
    failed = 0

    with background() as submit, torch.inference_mode():
        batches = read_scenes(dataset, results.wanted, opt, "images", opt.batchSize)
        for indices, batch in batches:
            try:
                generated = generate(model, sources, batch)
            except UserError as error:
                if not opt.input:
                    raise
                print_error(error)
                failed += 1
                continue
            for k, index in enumerate(indices):
                images = {name: batched[k] for name, batched in generated.items()}
                if results.has_page:
                    maps = {kind: values[k] for kind, values in batch.items()}
                    photo = photos.get(dataset.scenes[index])
                    images = shown_images(opt, maps, images, photo)
                results.write(index, images, submit)

    warn_missing(choosers, opt)
    results.finish(failed)


def shown_names(opt: argparse.Namespace, generated: Iterable[str]) -> list[str]:
    """The names that shown_images gives, for --skip_existing to look for, except for the
    photograph, which not every scene has."""
    views = [f"{name}_view" for name in generated] if needs_view(opt) else []
    return ["input_label", *generated, *views]


def shown_images(
    opt: argparse.Namespace, maps: dict, generated: dict[str, np.ndarray], photo: Path | None
) -> dict[str, Image]:
    """What the page shows of a scene, from left to right. To add or remove images, change this and
    shown_names.

    maps: the scene as AlignedDataset gives it. generated: the generator's images, by name. photo:
    the photograph's file, if there is one. Returns name -> image (H, W, 3) uint8, or a function
    that makes it, for work in the background. Each is also written to images/SCENE_NAME.png.
    Generated images that no browser can show are written as they are, and shown as NAME_view.
    """
    label = maps["label"]  # (C, H, W)
    images = {"input_label": partial(label_image, label, opt.label_nc, opt.ignore_label)}
    images |= generated
    values = image_values(opt, "output")
    if needs_view(opt):
        images |= {f"{n}_view": partial(view, image, values) for n, image in generated.items()}
    if photo is not None:
        images["real_image"] = partial(
            read_resized, photo, values, (label.shape[2], label.shape[1])
        )
    return images


def needs_view(opt: argparse.Namespace) -> bool:
    """Whether pages show a view of the generated images, as no browser can show their files."""
    return not image_values(opt, "output").is_rgb8 or opt.image_format not in ("png", "jpg")


def create_generator(opt: argparse.Namespace, device: torch.device) -> InferenceModel:
    """The generator with the run's weights, or with --onnx that of the file."""
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    if opt.onnx is None:
        model = create_model(opt, device)
        if opt.verbose:
            log_main(str(model))
        if opt.tile:
            folder = make_folder(Path(opt.tile_dir), "--tile_dir") if opt.tile_dir else None
            model.tiling = Tiling(opt.tile, folder)
        return model
    from models.export import OnnxModel  # rarely used

    return OnnxModel(opt, device, run_dir(opt), Path(opt.onnx), opt.ort_provider or "cpu")


def generate(
    model: InferenceModel, sources: dict[str, Callable], batch: dict | UserError
) -> dict[str, np.ndarray]:
    """The images (B, H, W, C) of a batch, by name; C and the type as in training. Raises UserError
    for a batch that could not be read, and for a file of --input that is too large."""
    if isinstance(batch, UserError):
        raise batch
    inputs = batch["label"], batch.get("inst")
    try:
        return {
            name: model.to_arrays(model.generate(*inputs, features(batch), batch.get("cond")))
            for name, features in sources.items()
        }
    except Exception as error:
        if not (model.opt.input and out_of_memory(error)):
            raise
        raise UserError(
            f"{batch['path'][0]}: out of memory; a small --tile PIXELS needs less"
        ) from error


def read_resized(photo: Path, values: Values, size: tuple[int, int]) -> np.ndarray:
    """A photograph at the size (width, height) of its label map, for display: (H, W, 3) uint8.
    Grey, with a warning, if it cannot be read."""
    try:
        return view(image_kind(values, "output").load(photo, size), values)
    except UserError as error:  # the model does not need it
        log(f"warning: {error}")
        return np.full((*size[::-1], 3), 127, np.uint8)


def view(image: np.ndarray, values: Values) -> np.ndarray:
    """An image (H, W, C) of any type for display: (H, W, 3) uint8."""
    return image if values.is_rgb8 else to_image(values.to_tensor(image))


def export(opt: argparse.Namespace) -> None:
    """Write the generator to --export_onnx, and print how far ONNX Runtime's images differ."""
    from models.export import export_onnx

    weights = weights_file(run_dir(opt), opt.which_epoch, "G", opt.ema)
    checksum = checksum_of(weights)  # before: training may save others meanwhile
    model = create_model(opt, torch.device("cpu"))
    differences = export_onnx(model, Path(opt.export_onnx), checksum)
    sizes = ", ".join("x".join(map(str, size)) for size in differences)
    log(
        f"{opt.export_onnx}: written; ONNX Runtime's images match PyTorch's, checked at {sizes}: "
        f"at most {max(differences.values())} grey levels apart"
    )


def main() -> object:
    opt = TestOptions().parse()
    if opt.export_onnx is not None:
        export(opt)
        return None
    return distributed.launch(test, opt)


if __name__ == "__main__":
    run(main)

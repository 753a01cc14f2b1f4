"""Do instance features control individual objects? Measured on the toy scenes with known colours.

    python -m benchmarks.style_control --name toy_features --labels_name toy_labels

Prints, and writes to results/NAME/style_control/style_control.json:
(a) the mean colour error inside things, with the features of the real photographs and, to compare,
    of a model without features;
(b) how often a car that is set to style K gets a mean colour nearer to K's palette colour than to
    any other;
(c) how much the pixels outside that car change on average, in grey levels.
Also a page that shows one scene per row, in several styles of one car.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch

from data.create import create_dataset
from data.loader import own_batches
from data.toy.scene import nearest_style, read_styles
from data.toy.shapes import CAR, PALETTES
from data.values import RGB8
from models import create_model
from models.inference_model import InferenceModel
from models.instance_maps import instance_class
from models.run_encoder import run_styles
from models.ui_model import UIModel
from options.base_options import CLUSTER_PATH, BaseOptions, scene_flags
from options.edit_options import check_model
from util.errors import UserError, run
from util.files import make_folder, write_text
from util.pages.colours import save_image
from util.pages.html import Page, Picture
from util.parser import Flag, Group
from util.progress import log
from util.setup import first_device, set_up_torch

COMPARED = Group(
    "comparison",
    *scene_flags("test"),
    CLUSTER_PATH,
    Flag("--results_dir", "./results/", "folder of the page and the figures", "DIR"),
    Flag("--labels_name", "", "a run without features, to compare"),
)
COMPARED.check(check_model)  # it uses the editor's model


class Options(BaseOptions):
    groups = [*BaseOptions.groups, COMPARED]


def measure(opt: argparse.Namespace, device: torch.device, folder: Path) -> dict:
    """The three measures of the module's docstring, over all scenes of opt.phase; writes the page
    and the figures into folder."""
    model = create_model(opt, device)
    styles = run_styles(model.folder, opt)
    if CAR not in styles:
        raise UserError(f"--name {opt.name}: there are no styles of cars")
    colours = colours_of_styles(model, opt, styles[CAR])
    if set(colours) == {None}:
        raise UserError(f"{opt.dataroot}: no training car is large enough to show a style's colour")
    plain = None
    if opt.labels_name:
        flags = ["--name", opt.labels_name, "--checkpoints_dir", opt.checkpoints_dir]
        plain = create_model(Options().parse(flags), device)
    make_folder(folder / "images", "--results_dir")
    page = Page(folder, f"One car in the styles of its class, {opt.name}")

    errors, plain_errors, hits, changes = [], [], [], []
    ui = UIModel(model)
    dataset = create_dataset(opt, training=False)
    for index, batch in own_batches(dataset, opt, "scenes"):
        label, ids = batch["label"][0, 0].numpy(), batch["inst"][0, 0].numpy()
        real = RGB8.to_array(batch["image"][0])  # to_image would darken it by up to a grey level
        ui.open(label, ids)
        ui.set_styles(ui.photo_features(real))
        picture = ui.picture()
        errors += colour_errors(picture, real, ids)
        if plain is not None:
            plain_errors += colour_errors(plain(label, ids), real, ids)
        cars = [i for i in np.unique(ids).tolist() if i >= 1000 and instance_class(i) == CAR]
        for car in cars:
            mask = ids == car
            shown = ui.previews(car, styles[CAR])
            for styled, colour in zip(shown, colours):
                if colour is not None:
                    hits.append(nearest_style(CAR, styled[mask].mean(0)) == colour)
                changes.append(np.abs(styled.astype(int) - picture)[~mask].mean())
        if index < 8 and cars:
            pictures = {"input_label": ui.label_image(), "real_image": real}
            pictures |= {f"style_{k}": styled for k, styled in enumerate(shown)}
            page_row(page, dataset.scenes[index], pictures, f"one car of {mask.sum()} pixels")
    page.save()
    figures = {
        "scenes": len(dataset),
        "things": len(errors),
        "colour_error_encoded": float(np.mean(errors)),
        "colour_error_labels_only": float(np.mean(plain_errors)) if plain_errors else None,
        "cars_times_styles": len(hits),
        "style_hit_share": float(np.mean(hits)),
        "change_outside": float(np.mean(changes)),
        "palette_colour_of_style": colours,
    }
    write_text(folder / "style_control.json", json.dumps(figures, indent=1) + "\n")
    return figures


def colour_errors(picture: np.ndarray, real: np.ndarray, ids: np.ndarray) -> list[float]:
    """For each thing, how far its mean colour is from the real one: mean over the channels."""
    things = [i for i in np.unique(ids).tolist() if i >= 1000]
    masks = [ids == i for i in things]
    return [float(np.abs(picture[m].mean(0) - real[m].mean(0)).mean()) for m in masks]


def colours_of_styles(
    model: InferenceModel, opt: argparse.Namespace, centres: np.ndarray
) -> list[int | None]:
    """For each style, the true palette colour of most training cars nearest to its centre, or None
    if there is no such car."""
    training = copy.copy(opt)
    training.phase, training.max_dataset_size = "train", None
    dataset = create_dataset(training, training=False)
    votes = np.zeros((len(centres), len(PALETTES[CAR])), int)
    for _, batch in own_batches(dataset, training, "styles of cars"):
        ids = batch["inst"][0, 0].numpy()
        features = model.encode_regions(batch["image"], batch["inst"])[0].numpy()
        for i, colour in read_styles(RGB8.to_array(batch["image"][0]), ids).items():
            mask = ids == i
            if instance_class(i) == CAR and mask.mean() > 1 / 64:
                distances = np.linalg.norm(centres - features[:, mask][:, 0], axis=1)
                votes[distances.argmin(), colour] += 1
    return [int(of_style.argmax()) if of_style.any() else None for of_style in votes]


def page_row(page: Page, scene: str, pictures: dict[str, np.ndarray], what: str) -> None:
    """Label map, photograph, and the last car of the scene in every style."""
    row = []
    for kind, picture in pictures.items():
        path = Path("images") / f"{Path(scene).name}_{kind}.png"
        save_image(picture, page.folder / path)
        row.append(Picture(path, kind))
    page.row(row, heading=f"{scene}, {what}", width=256)


def main() -> None:
    opt = Options().parse()
    set_up_torch(deterministic=False, tf32=False)
    folder = Path(opt.results_dir) / opt.name / "style_control"
    figures = measure(opt, first_device(opt), folder)
    compared = figures["colour_error_labels_only"]
    log(
        f"(a) mean colour error inside {figures['things']} things: "
        f"{figures['colour_error_encoded']:.1f} of 255 with encoded features"
        + (f", {compared:.1f} from labels alone" if compared is not None else "")
    )
    log(
        f"(b) {100 * figures['style_hit_share']:.1f}% of {figures['cars_times_styles']} cars set "
        "to a style have the style's colour"
    )
    log(f"(c) pixels outside the car change by {figures['change_outside']:.2f} grey levels")
    log(f"one car in all styles: {folder / 'index.html'}")


if __name__ == "__main__":
    run(main)

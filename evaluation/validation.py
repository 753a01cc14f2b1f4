"""Validation: how good the generator is, during training, on scenes that it is not trained on."""

import argparse
import zlib
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch

from data.create import create_dataset, photographs, without_crops
from data.files import image_names
from data.loader import gather_by_index, own_batches
from data.values import image_values
from evaluation.measures import (
    LPIPS_MIN_SIDE,
    MORE_IS_BETTER,
    PAIR_MEASURES,
    SET_MEASURES,
    TOO_SMALL,
    Measures,
    measure_pair,
    why_missing,
)
from evaluation.report import summary
from evaluation.segmentation import create_evaluator
from models.inference_model import InferenceModel
from models.pix2pixHD_model import Pix2PixHDModel
from util import distributed
from util.errors import UserError, first_line, out_of_memory
from util.pages.colours import scene_images
from util.parallel import background

SHOWN = 4  # scenes on the page


class Validation:
    """Generates the images of some scenes of a phase and measures them as evaluate.py does.

    It changes nothing that training depends on: networks, random state, the order of scenes.
    """

    def __init__(self, opt: argparse.Namespace, model: Pix2PixHDModel) -> None:
        """Raises UserError if the data set or the flags do not allow it."""
        self.opt = validation_options(opt)
        self.values = image_values(self.opt, "output")
        self.networks = InferenceModel.in_training(model, self.opt)
        self.dataset = create_dataset(self.opt, training=False, max_scenes=opt.val_max)
        names = image_names(self.dataset.files["label"])
        self.names = [names[scene] for scene in self.dataset.scenes]
        if opt.segmenter and not self.values.is_rgb8:
            raise UserError("--segmenter: segmenters see 8-bit RGB images; leave it out")
        self.evaluator = create_evaluator(self.opt, model.device) if opt.segmenter else None
        sizes = [self.dataset.geometry.final(self.dataset.sizes[s]) for s in self.dataset.scenes]
        if self.evaluator:  # report an unsuitable one before training starts
            self.evaluator.try_size(sizes[0])
        self.left_out: dict[str, str] = {}  # measure -> why
        if min(min(size) for size in sizes) < LPIPS_MIN_SIDE:
            self.left_out["lpips"] = TOO_SMALL
        if len(self.dataset) < distributed.world_size():
            self.left_out["kid"] = "there are fewer scenes than processes"
        self.available = self._available()
        usual = (name for name in ("mean_iou", "lpips", "ssim") if name in self.available)
        self.metric = opt.best_metric or next(usual)
        self.more_is_better = MORE_IS_BETTER[self.metric]
        if self.metric not in self.available:
            why = self.left_out.get(self.metric)
            if self.metric in SET_MEASURES and not why:
                why = why_missing(self.metric, self.opt.weights_dir)
            raise UserError(
                f"--best_metric {self.metric}: not measured here{f' ({why})' if why else ''}; "
                f"there are {', '.join(self.available)} "
                "(more with --segmenter and --weights_dir)"
            )
        # figures of other scenes or segmenters cannot be compared; folders may have moved
        self.measured_on = f"{len(self.names)} of {opt.val_phase}, {self.names[0]} {sizes[0]}"
        if self.metric in ("mean_iou", "pixel_accuracy", "segmenter_kid"):
            self.measured_on += f", {_segmenter(opt)}"

    def _available(self) -> list[str]:
        """The measures that are available, of those that --best_metric may name."""
        names = ["lpips", "fid", "kid"] if len(self.dataset) > 1 else ["lpips"]
        names = [n for n in names if self.values.is_rgb8 and n not in self.left_out]
        sets = [name for name in names if not why_missing(name, self.opt.weights_dir)]
        found = ["mean_iou", "pixel_accuracy"] if self.evaluator else []
        if self.evaluator and self.evaluator.segmenter.features:
            found.append("segmenter_kid")
        return [*found, *sets, *reversed(PAIR_MEASURES)]

    @torch.inference_mode()
    def measure(self) -> tuple[dict[str, float], dict[str, dict[str, np.ndarray]]]:
        """All processes together: (figures by name, images of some scenes). Raises UserError in all
        of them if one cannot read or measure a scene, has too little memory for it, or lacks the
        measure by which the best is chosen.

        figures: those of evaluate.py's metrics.json; the contents of "oracle" and "of_oracle" are
        named oracle_NAME and ratio_NAME. images: scene -> "input_label", "synthesized_image" or
        "real_image" -> (H, W, 3) uint8.
        """
        device, folder = self.networks.device, self.opt.weights_dir
        rgb = self.values.is_rgb8
        problem = None
        try:
            measures = Measures(len(self.dataset), folder, device, fetch=False, rgb=rgb)
            for name, reason in self.left_out.items():
                measures.leave_out(name, reason)
            rows, shown = self._measure_own(measures)
        except Exception as error:
            if not (isinstance(error, UserError) or out_of_memory(error)):
                raise
            problem = first_line(error)
        if problems := [one for one in distributed.gather(problem) if one]:
            raise UserError(problems[0])
        for reasons in distributed.gather(measures.reasons):  # missing in one: left out in all
            for name, reason in reasons.items():
                measures.leave_out(name, reason)
        rows, shown = gather_by_index(rows), gather_by_index(shown)
        figures = flattened(summary(list(rows.values()), measures, self.evaluator))
        if self.metric not in figures:  # e.g. its weights were deleted since the start
            raise UserError(f"{self.metric}: {measures.reasons[self.metric]}")
        return figures, {self.names[index]: images for index, images in shown.items()}

    def _measure_own(self, measures: Measures) -> tuple[dict[int, dict], dict[int, dict]]:
        """The rows of this process's scenes, and images of some of them, by number."""
        if self.evaluator:
            self.evaluator.reset()
        futures: dict[int, Future] = {}
        seen: dict[int, dict] = {}  # by the segmenter
        shown: dict[int, dict[str, np.ndarray]] = {}
        with background(max_pending=8) as submit:  # measures one image while the next is generated
            for index, batch in own_batches(self.dataset, self.opt, "validation"):
                generated = self._generate(batch)
                photograph, label = batch["image"][0], batch["label"][0]
                if index < SHOWN:
                    shown[index] = scene_images(label, generated, photograph, self.opt)
                generated, real = self._numbers(generated), self._numbers(photograph, exact=True)
                inst = batch["inst"][0, 0].numpy() if "inst" in batch else None
                futures[index] = submit(measure_pair, generated, real, inst)
                measures.add(generated, real)
                if self.evaluator:
                    seen[index] = self.evaluator.add(generated, real, label[0].numpy())
        return {i: row.result() | seen.get(i, {}) for i, row in futures.items()}, shown

    def _generate(self, batch: dict) -> torch.Tensor:
        """The image (output_nc, H, W) for a batch of one, with the features of its photograph."""
        feat = batch.get("feat")
        if self.networks.netE is not None:
            feat = self.networks.encode_batch(batch)
        inst, cond = batch.get("inst"), batch.get("cond")
        return self.networks.generate(batch["label"], inst, feat, cond)[0]

    def _numbers(self, image: torch.Tensor, exact: bool = False) -> np.ndarray:
        """The numbers that are measured: those of a written file, scaled to 0 .. 255. exact: for an
        image that was read, not generated: 8-bit numbers are rounded instead of truncated."""
        if self.values.is_rgb8 and not exact:
            return self.networks.to_arrays(image[None])[0]
        return self.values.scaled(self.values.to_array(image))


def _segmenter(opt: argparse.Namespace) -> str:
    """What tells a segmenter from others whose figures differ; its folder may have moved."""
    kind, _, source = opt.segmenter.partition(":")
    weights = "" if kind == "hf" else f"{zlib.crc32(Path(source).read_bytes()):08x} "
    # the end makes no longer text begin with this one: see Position.set_metric
    return f"{Path(source).name} ({weights}{opt.segmenter_classes} {opt.segmenter_width})"


def create_validation(
    opt: argparse.Namespace, model: Pix2PixHDModel
) -> tuple[Validation | None, str]:
    """The validation that the flags and the data set allow, and a message: what it is, or why there
    is none. Raises UserError if processes differ, as they would wait for each other."""
    validation, message = _create_validation(opt, model)
    measured = f"; {validation.measured_on}, {validation.available}" if validation else ""
    distributed.agree(
        message + measured,
        "would validate differently",
        "give all of them the same files, or --val_phase none",
    )
    return validation, message


def _create_validation(
    opt: argparse.Namespace, model: Pix2PixHDModel
) -> tuple[Validation | None, str]:
    """create_validation in one process."""
    phase = opt.val_phase
    try:
        phase = phase or default_phase(opt)
        if phase == "none":
            why = "--val_phase none"
            if opt.val_phase != "none":
                why = f"{opt.dataroot} has no val or test scenes with photographs"
                why += " and PHASE_feat/" if opt.load_features else ""
            for flag in ("best_metric", "segmenter", "patience"):
                if getattr(opt, flag) is not None:
                    raise UserError(f"--{flag} needs validation, and there is none: {why}")
            return None, f"no validation: {why}"
        validation = Validation(argparse.Namespace(**{**vars(opt), "val_phase": phase}), model)
    except UserError as error:
        if opt.val_phase or opt.best_metric or opt.segmenter or opt.patience:
            raise
        return None, f"no validation{f' on {phase}' if phase else ''}: {error}"
    return validation, (
        f"validation on {len(validation.dataset)} scenes of {phase} every {opt.val_freq} epochs; "
        f"the best by {validation.metric} is kept"
    )


def default_phase(opt: argparse.Namespace) -> str:
    """val, else test, if it has all files that validation reads; "none" if neither does."""
    for phase in ("val", "test"):
        own = argparse.Namespace(**{**vars(opt), "phase": phase})
        features = Path(opt.dataroot) / f"{phase}_feat"
        if phase != opt.phase and photographs(own) and (not opt.load_features or features.is_dir()):
            return phase
    return "none"


def validation_options(opt: argparse.Namespace) -> argparse.Namespace:
    """Training's options with the scenes of --val_phase as test.py sees them."""
    changed = {"phase": opt.val_phase, "max_dataset_size": None, "nThreads": 0}
    changed |= {"amp": "off", "compile": False, "data_type": 32, "which_epoch": "latest"}
    changed["weights_dir"] = Path(opt.weights_dir) if opt.weights_dir else None
    return argparse.Namespace(**{**vars(opt), **without_crops(vars(opt)), **changed})


def flattened(figures: dict[str, object]) -> dict[str, float]:
    """The numbers among the figures; the oracle's and the ratios get a prefix."""
    named = dict(figures)
    for key, prefix in (("oracle", "oracle_"), ("of_oracle", "ratio_")):
        named |= {prefix + name: value for name, value in figures[key].items()}
    return {name: float(v) for name, v in named.items() if isinstance(v, (int, float))}

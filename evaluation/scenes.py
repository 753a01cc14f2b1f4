"""The scenes that evaluate.py compares: generated images, photographs, label maps."""

import argparse
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np

from data.files import image_names, list_files, scan_folder, scene_key
from data.kinds import files_of, image_kind, scene_kinds
from data.values import image_values
from util.errors import UserError
from util.progress import log


@dataclass(frozen=True)
class SceneFiles:
    """The files of one scene: a generated image and what it is compared with."""

    name: str
    generated: Path
    real: Path
    label: Path
    inst: Path | None

    def read(self, opt: argparse.Namespace) -> tuple[np.ndarray | None, ...]:
        """The generated image and the photograph (H, W, C), the label map (H, W) (None with
        --label_nc 0) and the instance map (H, W) (None if there is none), all scaled to the
        generated image's size. Numbers other than 8-bit RGB are scaled to 0 .. 255."""
        values = image_values(opt, "output")
        images = image_kind(values, "output")
        generated = images.load(self.generated)
        size = generated.shape[1::-1]
        real = images.load(self.real, size)
        kinds = scene_kinds(opt.label_nc, ignore_label=opt.ignore_label)
        label = kinds["label"].load(self.label, size) if opt.label_nc else None
        inst = kinds["inst"].load(self.inst, size) if self.inst else None
        return values.scaled(generated), values.scaled(real), label, inst

    def is_resized(self, generated: np.ndarray, opt: argparse.Namespace) -> bool:
        """Whether the photograph's size differs from the generated image's."""
        size = image_kind(image_values(opt, "output"), "output").size(self.real)
        return size != generated.shape[1::-1]


def find_scenes(opt: argparse.Namespace) -> list[SceneFiles]:
    """The scenes of opt.phase that have an image in opt.images."""
    if not opt.images.is_dir():  # before the data set: for a mistyped --name it is the default one
        raise UserError(
            f"{opt.images}: no such folder; generate images with test.py, or check --name, "
            "--which_epoch, --phase and --results_dir (or --images)"
        )
    folder = Path(opt.dataroot) / f"{opt.phase}_inst"
    has_instances = folder.is_dir() and bool(scan_folder(folder)[0])
    files = files_of(scene_kinds(opt.label_nc, has_instances), opt.dataroot, opt.phase)
    names = image_names(files["label"])
    images = find_images(opt.images, names)
    if missing := [str(files["label"][scene]) for scene in images if scene not in files["image"]]:
        raise UserError(f"{opt.dataroot}: no photograph for {missing[0]} ({len(missing)} in all)")
    warn_of_other_runs(opt.images, images.values())
    if len(images) < len(names):
        log(f"{len(images)} of the {len(names)} scenes of {opt.phase} have an image")
    real, label, inst = files["image"], files["label"], files.get("inst", {})
    return [
        SceneFiles(names[scene], images[scene], real[scene], label[scene], inst.get(scene))
        for scene in sorted(images, key=label.get)  # as in AlignedDataset, for --val_max
    ]


def warn_of_other_runs(folder: Path, images: Collection[Path]) -> None:
    """Warn of images that are not from test.py's last complete run, which writes a page beside
    their folder at its end: an earlier run may have had more scenes, a later one been cut off."""
    page = folder.parent / "index.html"
    if folder.name != "images" or not page.is_file():
        return
    # bytes: the locale need not be UTF-8; a set: a page may have 100000 links
    links = re.findall(rb'images/([^"\s]+)\.(?:png|jpg)', page.read_bytes())
    shown = {unquote_to_bytes(link).removesuffix(b"_view") for link in links}
    older = [path for path in images if os.fsencode(path.stem) not in shown]
    newer = [path for path in images if path.stat().st_mtime_ns > page.stat().st_mtime_ns]
    if older:
        log(f"warning: {len(older)} images, e.g. {older[0]}, are from an earlier run of test.py")
    elif 0 < len(newer) < len(images):
        log(
            f"warning: {len(newer)} of {len(images)} images, e.g. {newer[0]}, are newer than their "
            "page: unless these are copies, a run of test.py was cut off, and the rest are from an "
            "earlier one; run it again"
        )


def find_images(folder: Path, names: dict[str, str]) -> dict[str, Path]:
    """The generated image of every scene that has one: named as by test.py or, in any other folder,
    by scene. names: scene key -> name."""
    found = {}
    for scene, name in names.items():
        paths = [folder / f"{name}_synthesized_image.{end}" for end in ("png", "jpg", "tif", "npy")]
        there = [path for path in paths if path.is_file()]
        if there:  # test.py may have written other formats before
            found[scene] = max(there, key=lambda path: path.stat().st_mtime_ns)
    if not found:  # named by scene, or by test.py --output
        files = list_files(folder)
        keys = {scene: scene_key(folder / f"{name}.png", folder) for scene, name in names.items()}
        unique = Counter(keys.values())
        for scene, key in keys.items():
            if scene in files:
                found[scene] = files[scene]
            elif key in files and unique[key] == 1:
                found[scene] = files[key]
    if not found:
        raise UserError(
            f"{folder}: no image of the data set's scenes (expected e.g. "
            f"{next(iter(names.values()))}_synthesized_image.png); check --phase and --dataroot"
        )
    return found

"""Label maps (and instance maps) from any files, read like those of a data set."""

import argparse
import glob
import os
from pathlib import Path

import numpy as np

from data.aligned_dataset import Geometry, SceneDataset
from data.create import kind_arguments
from data.files import list_files, scene_key
from data.kinds import scene_kinds
from util.errors import UserError

Files = dict[str, Path]  # by scene key


class InputFiles(SceneDataset):
    """Scenes without photographs, from the files of --input, --input_inst and --input_cond.

    Each file is checked only when it is read, so that a bad one does not stop the rest: its item is
    the UserError that says what is wrong with it.
    """

    def __init__(self, opt: argparse.Namespace) -> None:
        labels = find_inputs("--input", opt.input, Path(opt.output))
        files = {"label": labels}
        if not opt.no_instance:
            files["inst"] = partners(labels, find_inputs("--input_inst", opt.input_inst))
        if opt.cond_nc:
            files["cond"] = partners(labels, find_inputs("--input_cond", opt.input_cond))
        scenes = list(labels)[: opt.how_many][: opt.max_dataset_size]
        only_maps = {"load_photos": False, "load_features": False}
        kinds = scene_kinds(opt.label_nc, **{**kind_arguments(opt), **only_maps})
        geometry = Geometry(opt.resize_or_crop, opt.loadSize, opt.fineSize)
        super().__init__(kinds, files, scenes, geometry, opt.seed)

    def scaled_maps(self, index: int) -> dict[str, np.ndarray]:
        """See SceneDataset.scaled_maps."""
        scene = self.scenes[index]
        for kind, files in self.files.items():
            if scene not in files:
                path = self.files["label"][scene]
                self.kinds["label"].size(path)  # raises if the label map itself is missing
                raise UserError(f"{path}: --input_{kind} has no map of that name, or several")
        self.check_size(index)
        return super().scaled_maps(index)


def find_inputs(flag: str, text: str, output: Path | None = None) -> Files:
    """The files that a flag's value names: a file, all images in a folder, those that match a glob
    pattern, or those that a list (.txt) names, one path a line. Raises UserError if there are none.

    output: a folder of results, which is skipped if it lies in the folder that is read.
    """
    path = Path(text)
    if path.is_dir():
        files = list_files(path)
        if output and path.resolve() in output.resolve().parents:
            results = output.resolve()
            files = {k: file for k, file in files.items() if results not in file.resolve().parents}
            if not files:
                raise UserError(f"{flag} {text}: holds no images except those of --output {output}")
        return files
    if path.is_file() and path.suffix == ".txt":
        lines = path.read_text("utf-8-sig", errors="surrogateescape").splitlines()
        if any("\0" in line for line in lines):
            raise UserError(f"{flag} {text}: not a list of paths in UTF-8; save it again")
        paths = [Path(line.strip()) for line in lines if line.strip()]
    elif path.is_file():
        paths = [path]
    else:
        found = sorted(glob.glob(text, recursive=True))
        paths = [Path(name) for name in found if os.path.isfile(name)]
    if not paths:
        raise UserError(f"{flag} {text}: no such file or folder, and no file matches it")

    # as in a data set: a scene is what its files' paths, below a common folder, share
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    files: Files = {}
    for path in paths:
        first = files.setdefault(scene_key(path.absolute(), root), path)
        if first != path:
            raise UserError(f"{flag}: {first} and {path} would be the same image; leave one out")
    return files


def partners(labels: Files, others: Files) -> Files:
    """The partner of each label map that has one: the file of the same subfolder and name, or else
    the only one of that name, unless it is another label map's. A single label map and a single
    file are partners, whatever their names."""
    if len(labels) == len(others) == 1:
        return dict(zip(labels, others.values()))
    by_name: dict[str, list[str]] = {}
    for key in others:
        by_name.setdefault(Path(key).name, []).append(key)
    found = {}
    for key in labels:
        named = by_name.get(Path(key).name, [])
        if key in others:
            found[key] = others[key]
        elif len(named) == 1 and named[0] not in labels:
            found[key] = others[named[0]]
    return found

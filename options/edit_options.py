"""The flags of edit.py and of the object library."""

import argparse

from data.values import image_values
from options.base_options import CLUSTER_PATH, BaseOptions, scene_flags
from util.errors import UserError
from util.parser import Flag, Group, integer

EDITOR = Group(
    "editor",
    *scene_flags("test"),
    CLUSTER_PATH,
    Flag("--host", "127.0.0.1", "address to serve at; 0.0.0.0: reachable from outside"),
    Flag("--port", 7860, "port to serve at; 0: any free one", integer(0, 65535)),
    Flag("--replay", None, "render this edit list instead of serving", "FILE"),
    Flag("--out", None, "where --replay writes", "DIR"),
)

LIBRARY = Group(
    "object library",
    *scene_flags("train"),
    Flag("--per_class", 24, "maximum number of objects per class", integer(1)),
)


@EDITOR.check
@LIBRARY.check
def check_model(opt: argparse.Namespace) -> None:
    if opt.label_nc == 0:
        raise UserError("--label_nc 0: the editor needs a model of label maps, not of images")
    if opt.cond_nc:
        raise UserError("--cond_nc: the editor cannot edit conditions; it needs a model without")
    if opt.load_features:
        raise UserError("--load_features: the editor encodes photographs itself; leave it out")
    if not image_values(opt, "output").is_rgb8:
        raise UserError(f"{opt.name}: the editor shows 8-bit RGB images; this model makes others")


@EDITOR.check
def check_replay(opt: argparse.Namespace) -> None:
    if bool(opt.replay) != bool(opt.out):
        raise UserError("--replay FILE needs --out DIR, and --out needs --replay")


class EditOptions(BaseOptions):
    description = "Edit individual objects of a scene in a browser."
    groups = [*BaseOptions.groups, EDITOR]

    def complete(self, opt: argparse.Namespace) -> None:
        super().complete(opt)
        opt.model = "ui"


class LibraryOptions(BaseOptions):
    phase_of_run = True
    description = "Cut objects from the instance maps of a data set, for the editor to add."
    groups = [*BaseOptions.groups, LIBRARY]

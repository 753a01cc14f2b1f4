"""Edit individual objects of a scene in a browser.

    python edit.py --name toy_features
    python edit.py --name toy_features --replay edits.json --out results/edited

The first line opens the editor at http://127.0.0.1:7860 (pip install -r requirements-ui.txt). The
second renders an edit list that was downloaded there, without a browser. docs/editor.md shows the
tools one by one.
"""

import argparse
from pathlib import Path

from editor.library import FILE, load_library
from editor.record import replay_file
from editor.scenes import Scenes
from models import create_model
from models.run_encoder import find_encoder, is_outdated
from models.ui_model import UIModel
from options.edit_options import EditOptions
from util.errors import UserError, run
from util.progress import log
from util.setup import first_device, seed_everything, set_up_torch


def edit(ui: UIModel, opt: argparse.Namespace) -> None:
    """Serve the editor's page until interrupted."""
    try:
        from editor.page import EditorPage, serve
    except ImportError as error:  # only the editor needs its packages
        raise UserError(f"{error}; pip install -r requirements-ui.txt") from error

    folder = ui.networks.folder
    path = folder / FILE
    objects = load_library(path, opt.label_nc, opt.feat_num if ui.has_features else 0)
    encoder, _ = find_encoder(folder, opt, folder)
    if objects and ui.has_features and is_outdated(path, encoder):
        log(
            f"warning: {path} has features of an encoder other than {encoder}; make a new one "
            "with python -m editor.library"
        )
    serve(EditorPage(ui, Scenes(opt), objects), opt.host, opt.port)


def main() -> None:
    opt = EditOptions().parse()
    set_up_torch(opt.deterministic, opt.tf32)
    seed_everything(opt.seed)
    ui = create_model(opt, first_device(opt))
    if opt.verbose:
        log(str(ui.networks))
    if opt.replay:
        for path in replay_file(ui, Path(opt.replay), Path(opt.out)):
            log(str(path))
    else:
        edit(ui, opt)


if __name__ == "__main__":
    run(main)

"""The flags of edit.py and of the object library."""

import argparse

from options.base_options import BaseOptions, Parser, integer
from util.errors import UserError


class StyledRunOptions(BaseOptions):
    """A trained run, its styles, and a phase of a data set."""

    phase = "test"

    def declare(self, parser: Parser) -> None:
        super().declare(parser)
        run = parser.add_argument_group("trained run")
        run.add_argument("--phase", default=self.phase, help="which folders' scenes to use")
        run.add_argument("--which_epoch", default="latest", help="which weights to load")

    def check(self, opt: argparse.Namespace) -> None:
        super().check(opt)
        if opt.data_type == 8:
            raise UserError("--data_type 8: PyTorch has no 8-bit generator; use 16 or 32")
        if opt.label_nc == 0:
            raise UserError("--label_nc 0: the editor needs a model of label maps, not of pictures")


class EditOptions(StyledRunOptions):
    description = "Steer single objects of a scene in a browser."

    def declare(self, parser: Parser) -> None:
        super().declare(parser)
        edit = parser.add_argument_group("editor")
        edit.add_argument("--cluster_path", default="features_clustered_010.npy", help="styles")
        edit.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable from outside")
        edit.add_argument("--port", type=integer(0), default=7860, help="0: any free one")
        edit.add_argument("--replay", default=None, metavar="FILE", help="render an edit list")
        edit.add_argument("--out", default=None, metavar="DIR", help="where --replay writes")

    def check(self, opt: argparse.Namespace) -> None:
        super().check(opt)
        if (opt.replay is None) != (opt.out is None):
            raise UserError("--replay FILE needs --out DIR, and --out needs --replay")
        if opt.port > 65535:
            raise UserError(f"--port {opt.port}: expected 0 to 65535")
        opt.model = "ui"


class LibraryOptions(StyledRunOptions):
    description = "Cut objects from the instance maps of a data set, for the editor to add."
    phase = "train"

    def declare(self, parser: Parser) -> None:
        super().declare(parser)
        parser.add_argument_group("library").add_argument(
            "--per_class", type=integer(1), default=24, help="objects of a class, at most"
        )

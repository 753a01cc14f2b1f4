"""The flags of test.py and of the commands that use a trained encoder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from options.base_options import BaseOptions, Parser, count_or_inf, number, run_dir
from options.train_options import TrainOptions
from util.errors import UserError


class TestOptions(BaseOptions):
    __test__ = False  # not a test case, whatever pytest makes of the name
    description = "Turn label maps into photographs with a trained model, on an HTML page."

    def declare(self, parser: Parser) -> None:
        super().declare(parser)
        test = parser.add_argument_group("test")
        test.add_argument("--ntest", type=count_or_inf, default=None, help="the same as --how_many")
        test.add_argument("--how_many", type=count_or_inf, default=None, help="default: all")
        test.add_argument("--results_dir", default="./results/", help="where pages are written")
        test.add_argument(
            "--aspect_ratio", type=number(0.01, 100), default=1.0, help="widen saved pictures by it"
        )
        test.add_argument("--phase", default="test", help="which folders to use")
        test.add_argument("--which_epoch", default="latest", help="which weights to load")
        test.add_argument("--image_format", default="png", choices=["png", "jpg"])

        styles = parser.add_argument_group("styles (models with --instance_feat or --label_feat)")
        styles.add_argument("--cluster_path", default="features_clustered_010.npy")
        styles.add_argument(
            "--use_encoded_image", action="store_true", help="take all styles from the photographs"
        )
        styles.add_argument(
            "--style",
            action="append",
            default=[],
            metavar="CLASS=K",
            help="give a class (name or id) its style K, e.g. car=3; repeatable",
        )
        styles.add_argument(
            "--style_from",
            action="append",
            default=[],
            metavar="SCENE,ID",
            help="give a class the look of one instance of a scene of this phase or of train, "
            "e.g. aachen_000000_000019,26001; repeatable",
        )
        styles.add_argument(
            "--all_styles", default=None, metavar="CLASS", help="every style of a class in a row"
        )

        export = parser.add_argument_group("ONNX (pip install -r requirements-onnx.txt)")
        export.add_argument(
            "--export_onnx",
            default=None,
            metavar="FILE",
            help="write the generator to this file and end; in half precision with --data_type 16",
        )
        export.add_argument(
            "--onnx", default=None, metavar="FILE", help="draw with this file instead of PyTorch"
        )
        export.add_argument(
            "--ort_provider",
            default=None,
            choices=["cpu", "cuda", "tensorrt"],
            help="what --onnx runs on; default: cpu",
        )
        export.add_argument("--engine", default=None, help="refused: TensorRT 4 engines are gone")

    def check(self, opt: argparse.Namespace) -> None:
        super().check(opt)
        if opt.model == "ui":
            raise UserError(f"--model ui: the editor is python edit.py --name {opt.name}")
        if opt.data_type == 8:
            raise UserError("--data_type 8: PyTorch has no 8-bit generator; use 16 or 32")
        if opt.engine:
            raise UserError(
                "--engine: TensorRT 4 engines cannot be run; export with --export_onnx, then run "
                "--onnx FILE --ort_provider tensorrt"
            )
        self.check_onnx(opt)
        if opt.ntest is not None:
            opt.how_many = min(opt.how_many or opt.ntest, opt.ntest)
        chooses = opt.style or opt.style_from or opt.all_styles or opt.use_encoded_image
        if chooses and not (opt.instance_feat or opt.label_feat):
            raise UserError("styles need a model trained with --instance_feat or --label_feat")
        if chooses and opt.load_features:
            raise UserError("--load_features reads all features from files: leave styles out")
        if opt.use_encoded_image and (opt.style or opt.style_from or opt.all_styles):
            raise UserError("--use_encoded_image leaves no style to choose: leave one of them out")

    def check_onnx(self, opt: argparse.Namespace) -> None:
        """Refuse what cannot be had together with a graph."""
        if opt.export_onnx and opt.onnx:
            raise UserError("--export_onnx and --onnx exclude each other; give one of them")
        if opt.ort_provider and not opt.onnx:
            raise UserError("--ort_provider needs --onnx FILE")
        flag = "--export_onnx" if opt.export_onnx else "--onnx"
        if (opt.export_onnx or opt.onnx) and (opt.compile or opt.amp != "off" or opt.fp16):
            raise UserError(f"{flag}: leave --compile, --amp and --fp16 out, they are PyTorch's")
        if opt.onnx and opt.data_type != 32:
            raise UserError("--onnx: the file tells the precision; leave --data_type out")


class EncoderOptions(TrainOptions):
    """Flags of encode_features.py and precompute_feature_maps.py.

    They are those of train.py, so that a training command's flags can be passed as they are;
    --load_pretrain DIR takes the weights from DIR instead of the run's folder.
    """

    is_train = False
    description = "Use a trained encoder on the training set."

    def declare(self, parser: Parser) -> None:
        super().declare(parser)
        parser.add_argument_group("encoder").add_argument(
            "--reencode", action="store_true", help="encode again although features.npy is there"
        )

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        opt = super().parse(argv)
        if not opt.label_feat:
            opt.instance_feat = True  # what these commands are for
        opt.load_features = False
        return opt


def weights_folder(opt: argparse.Namespace) -> Path:
    """Where the encoder's weights are: the run's folder, or --load_pretrain."""
    return Path(opt.load_pretrain) if opt.load_pretrain else run_dir(opt)

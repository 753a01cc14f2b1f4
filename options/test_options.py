"""The flags of test.py and of the commands that use a trained encoder."""

import argparse

from options.base_options import BaseOptions, Parser, count_or_inf, number
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
            "--aspect_ratio",
            type=number(0.01, 100),
            default=1.0,
            help="widen saved pictures by this",
        )
        test.add_argument("--phase", default="test", help="which folders to use")
        test.add_argument("--which_epoch", default="latest", help="which weights to load")
        test.add_argument("--image_format", default="png", choices=["png", "jpg"])

        styles = parser.add_argument_group("styles (with --instance_feat or --label_feat)")
        styles.add_argument("--cluster_path", default="features_clustered_010.npy")
        styles.add_argument(
            "--use_encoded_image", action="store_true", help="take styles from the photographs"
        )

        export = parser.add_argument_group("export")
        export.add_argument("--export_onnx", default=None, help="write the generator to this file")
        export.add_argument("--onnx", default=None, help="run this ONNX file instead of PyTorch")
        export.add_argument("--engine", default=None, help="refused: TensorRT 4 engines are gone")

    def check(self, opt: argparse.Namespace) -> None:
        super().check(opt)
        if opt.data_type == 8:
            raise UserError("--data_type 8: PyTorch has no 8-bit generator; use 16 or 32")
        if opt.engine:
            raise UserError(
                "--engine: TensorRT 4 engines cannot be run; export with --export_onnx, then run "
                "--onnx FILE --ort_provider tensorrt"
            )
        if opt.ntest is not None:
            opt.how_many = min(opt.how_many or opt.ntest, opt.ntest)


class EncoderOptions(BaseOptions):
    """Flags of encode_features.py and precompute_feature_maps.py."""

    description = "Use a trained encoder on the training set."

    def declare(self, parser: Parser) -> None:
        super().declare(parser)
        encoder = parser.add_argument_group("encoder")
        encoder.add_argument("--phase", default="train", help="which folders to encode")
        encoder.add_argument("--which_epoch", default="latest", help="which weights to load")
        encoder.add_argument("--load_pretrain", default="", help="take the weights from here")
        encoder.add_argument(
            "--reencode", action="store_true", help="encode again although features.npy is there"
        )

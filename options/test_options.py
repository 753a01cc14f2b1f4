"""The flags of test.py and of the commands that use a trained encoder."""

import argparse
from pathlib import Path

from data.values import image_values
from models.build import uses_features
from options.base_options import CLUSTER_PATH, BaseOptions, scene_flags
from options.train_options import TrainOptions
from util.errors import UserError
from util.parser import Flag, Group, count_or_inf, integer, number
from util.run.checkpoints import is_saved, run_dir, saved_options, weights_file
from util.run.flags import OLD_DEFAULTS

FORMATS = ["png", "jpg", "tif", "npy"]
TILE_DIR_HELP = "folder for --tile's large maps; default: the system's temporary folder"

TEST = Group(
    "test",
    *scene_flags("test"),
    Flag("--how_many", None, "use at most this many scenes; default: all", count_or_inf),
    Flag("--ntest", None, "the same as --how_many", count_or_inf),
    Flag("--results_dir", "./results/", "folder of the pages", "DIR"),
    Flag("--image_format", None, "of the saved images; default: png if possible", FORMATS),
    Flag("--aspect_ratio", 1.0, "factor for the width of saved images", number(0.01, 100)),
    Flag("--tile", None, "side of a tile in pixels: less memory, same float32 image", integer(8)),
    Flag("--tile_dir", None, TILE_DIR_HELP, "DIR"),
)


@TEST.check
def check_test(opt: argparse.Namespace) -> None:
    if opt.model == "ui":
        raise UserError(f"--model ui: the editor is python edit.py --name {opt.name}")
    if opt.tile and (opt.compile or opt.onnx or opt.export_onnx):
        raise UserError("--tile: leave --compile, --onnx and --export_onnx out")
    if opt.tile_dir and not opt.tile:
        raise UserError("--tile_dir needs --tile PIXELS")


FILES = Group(
    "files instead of a data set (FILES: a file, a folder, a quoted glob, or a .txt list of paths)",
    Flag("--input", None, "label maps, or with --label_nc 0 images; no page is made", "FILES"),
    Flag("--input_inst", None, "their instance maps, paired by name", "FILES"),
    Flag("--input_cond", None, "their further maps (--cond_nc), paired by name", "FILES"),
    Flag("--output", None, "folder of the images, named like the label maps", "DIR"),
    Flag("--skip_existing", False, "skip images that --output already has"),
    Flag("--page", False, "make a page in --output"),
)


@FILES.check
def check_files(opt: argparse.Namespace) -> None:
    if opt.input is None:
        for flag in ("input_inst", "input_cond", "output", "skip_existing", "page"):
            if getattr(opt, flag):
                raise UserError(f"--{flag} needs --input FILES")
        return
    if not opt.input:  # an empty variable in a script, say
        raise UserError("--input is empty: name files, or leave it out to use the data set")
    if not opt.output:
        raise UserError("--input needs --output DIR")
    if opt.input_inst and opt.no_instance:
        raise UserError(f"--input_inst: {opt.name} was trained without instance maps; leave it out")
    if not (opt.input_inst or opt.no_instance):
        raise UserError(
            f"--input: {opt.name} was trained with instance maps (edges); give those of the label "
            "maps with --input_inst FILES"
        )
    if bool(opt.input_cond) != bool(opt.cond_nc):
        raise UserError(
            f"--input: {opt.name} was trained with --cond_nc {opt.cond_nc}; "
            + ("give them with --input_cond FILES" if opt.cond_nc else "leave --input_cond out")
        )
    for flag in ("use_encoded_image", "load_features"):
        if getattr(opt, flag):
            raise UserError(f"--{flag} needs a data set, not --input; choose styles instead")
    if opt.batchSize > 1:
        raise UserError("--input: images are generated one by one; leave --batchSize out")


ONNX = Group(
    "ONNX (pip install -r requirements-onnx.txt)",
    Flag("--export_onnx", None, "write the generator to this file and exit", "FILE"),
    Flag("--onnx", None, "generate with this file instead of PyTorch", "FILE"),
    Flag("--ort_provider", None, "what runs --onnx; default: cpu", ["cpu", "cuda", "tensorrt"]),
    Flag("--engine", None, "refused: TensorRT 4 engines cannot be run", "FILE"),
)


@ONNX.check
def check_onnx(opt: argparse.Namespace) -> None:
    if opt.engine:
        raise UserError(
            "--engine: TensorRT 4 engines cannot be run; export with --export_onnx, then run "
            "--onnx FILE --ort_provider tensorrt"
        )
    if opt.export_onnx and opt.onnx:
        raise UserError("--export_onnx and --onnx cannot be combined; give one of them")
    if opt.ort_provider and not opt.onnx:
        raise UserError("--ort_provider needs --onnx FILE")
    if (opt.export_onnx or opt.onnx) and (opt.compile or opt.amp != "off" or opt.fp16):
        raise UserError(
            "--export_onnx and --onnx: leave out --compile, --amp and --fp16, which are PyTorch's"
        )
    if opt.onnx and opt.data_type != 32:
        raise UserError("--onnx: the file sets the precision; leave --data_type out")


STYLES = Group(
    "styles (models with --instance_feat or --label_feat)",
    Flag("--style", [], "give a class (name or id) its style K, e.g. car=3; repeatable", "CLASS=K"),
    Flag("--style_from", [], "give an instance's style to its whole class; repeatable", "SCENE,ID"),
    Flag("--all_styles", None, "show every style of this class, side by side", "CLASS"),
    Flag("--use_encoded_image", False, "take all styles from the photographs"),
    CLUSTER_PATH,
)


@STYLES.check
def check_styles(opt: argparse.Namespace) -> None:
    chosen = opt.style or opt.style_from or opt.all_styles
    if (chosen or opt.use_encoded_image) and not uses_features(opt):
        raise UserError("styles need a model trained with --instance_feat or --label_feat")
    if (chosen or opt.use_encoded_image) and opt.load_features:
        raise UserError("--load_features reads all features from files: leave out the styles")
    if chosen and opt.use_encoded_image:
        raise UserError(
            "--use_encoded_image cannot be combined with --style, --style_from and --all_styles"
        )


class TestOptions(BaseOptions):
    __test__ = False  # not a test case, whatever pytest makes of the name
    description = "Generate images from label maps with a trained model, on an HTML page."
    groups = [*BaseOptions.groups, TEST, FILES, STYLES, ONNX]

    def complete(self, opt: argparse.Namespace) -> None:
        super().complete(opt)
        if opt.ntest is not None:
            opt.how_many = min(opt.how_many or opt.ntest, opt.ntest)
        opt.image_format = image_format(opt)


def image_format(opt: argparse.Namespace) -> str:
    """--image_format if given, or else png if it can hold the images, and tif if not. Raises
    UserError for a format that cannot hold them."""
    values = image_values(opt, "output")
    fits = {"tif", "npy"}
    if values.dtype in ("uint8", "uint16") and values.channels in (1, 3):
        fits.add("png")
    if values.is_rgb8:
        fits.add("jpg")
    if opt.image_format and opt.image_format not in fits:
        raise UserError(
            f"--image_format {opt.image_format} cannot hold {values.channels} channels of "
            f"{values.dtype}; choose one of {', '.join(sorted(fits))}"
        )
    return opt.image_format or ("png" if "png" in fits else "tif")


ENCODER = Group("encoder", Flag("--reencode", False, "encode again even if features.npy exists"))


class EncoderOptions(TrainOptions):
    """Flags of encode_features.py and precompute_feature_maps.py.

    They are those of train.py, so that a training command's flags can be passed as they are;
    --load_pretrain DIR takes the weights from DIR instead of the run's folder.
    """

    is_train = False
    phase_of_run = True
    description = "Use the run's encoder, or that of --load_pretrain DIR, on the training set."
    groups = [*TrainOptions.groups, ENCODER]

    def complete(self, opt: argparse.Namespace) -> None:
        super().complete(opt)
        if not opt.label_feat:
            opt.instance_feat = True  # what these commands are for
        if opt.load_pretrain:  # that run's encoder
            saved = saved_options(Path(opt.load_pretrain))
            opt.feat_num = saved.get("feat_num", opt.feat_num)
        opt.load_features = False


def encoder_file(opt: argparse.Namespace) -> Path:
    """The encoder's weights: of the run, or of the run that --load_pretrain names. Raises UserError
    if a requested epoch has none; the latest may be in the run that it was pretrained from."""
    folder, ema = run_dir(opt), opt.ema
    if opt.load_pretrain:
        folder = Path(opt.load_pretrain)
        ema = (OLD_DEFAULTS | saved_options(folder))["ema"]
    path = weights_file(folder, opt.which_epoch, "E", ema)
    if opt.which_epoch != "latest" and not is_saved(path):
        raise UserError(f"{path}: no such file; check --which_epoch")
    return path

"""The flags of train.py."""

import argparse
from pathlib import Path

from data.augment import AUGMENTATIONS, GEOMETRIC
from evaluation.measures import MORE_IS_BETTER
from models.build import uses_features
from options.base_options import CHANNELS, BaseOptions, inherited, scene_flags
from options.evaluate_options import SEGMENTERS, WEIGHTS_DIR, check_weights_dir
from util.errors import UserError
from util.parser import Flag, Group, integer, number, safe_name, subset_of

# What --recipe sets unless the flags themselves are given; docs/recipes.md says what each gains.
RECIPES: dict[str, dict[str, object]] = {
    "paper": {},
    "plus": {
        "norm": "channel",
        "upsample": "nearest",
        "lambda_L1": 100.0,
        "ema": 0.998,
        "instance_noise": 3,
    },
}
FREEZABLE = ["down", "blocks", "up", "E"]  # of G, and the encoder
FREEZE_HELP = f"parts that are not trained: any of {', '.join(FREEZABLE)}"
AUGMENT_HELP = f"random changes to the scenes: any of {', '.join(AUGMENTATIONS)}"
WEIGHT = number(0, 1e9)  # of a loss

SAVING = Group(
    "logging and saving",
    Flag("--print_freq", 100, "images between log lines", integer(1)),
    Flag("--display_freq", 100, "images between updates of the page", integer(1)),
    Flag("--save_latest_freq", 1000, "images between saves of latest", integer(1)),
    Flag("--save_epoch_freq", 10, "epochs between saves that are kept", integer(1)),
    Flag("--keep_checkpoints", None, "keep only the newest N epochs; default: all", integer(1)),
    Flag("--wandb", False, "log to Weights & Biases"),
    Flag("--mlflow", False, "log to MLflow"),
    Flag("--no_html", False, "write no web/index.html"),
    Flag("--debug", False, "one short epoch that logs and shows every step"),
)

TRAINING = Group(
    "training",
    *scene_flags("train"),
    Flag("--recipe", "paper", "plus: other defaults (docs/recipes.md)", sorted(RECIPES)),
    Flag("--continue_train", False, "resume from the last save"),
    Flag("--load_pretrain", "", "start from the weights in this folder", "DIR"),
    Flag("--map_classes", "", "classes of that run and what they are here: OLD=NEW,..."),
    Flag("--freeze", "", FREEZE_HELP, subset_of(FREEZABLE)),
    Flag("--augment", "", AUGMENT_HELP, subset_of(AUGMENTATIONS)),
    Flag("--niter", 100, "epochs at the initial learning rate", integer(0, 10**9)),
    Flag("--niter_decay", 100, "further epochs of linear decay to zero", integer(0, 10**9)),
    Flag("--lr", 0.0002, "initial learning rate of Adam", number(0, 1e6)),
    Flag("--beta1", 0.5, "Adam's momentum", number(0, 1 - 1e-9)),
    Flag("--checkpoint_activations", False, "recompute activations of G and VGG to save memory"),
)


@TRAINING.check
def check_training(opt: argparse.Namespace) -> None:
    if opt.model != "pix2pixHD":
        raise UserError(f"--model {opt.model}: only pix2pixHD can be trained")
    if opt.data_type != 32:
        raise UserError(f"--data_type {opt.data_type} is for tests; train with --amp or --fp16")
    if opt.compile and opt.checkpoint_activations and opt.norm == "batch":
        raise UserError(
            "--compile, --checkpoint_activations and --norm batch cannot be combined: the compiler "
            "cannot keep running statistics from being updated twice; leave one out"
        )
    if opt.niter + opt.niter_decay == 0:
        raise UserError("--niter 0 --niter_decay 0: no epoch to train")
    if opt.load_pretrain:
        inherited(Path(opt.load_pretrain))  # raises now if its opt.json is invalid
    if opt.map_classes and not opt.load_pretrain:
        raise UserError("--map_classes needs --load_pretrain DIR")
    if {"down", "blocks", "up"} <= set(opt.freeze):
        raise UserError("--freeze down,blocks,up leaves nothing of G to train; leave one out")
    if "E" in opt.freeze and (opt.load_features or not uses_features(opt)):
        raise UserError("--freeze E: no encoder is trained; leave it out or add --instance_feat")
    if opt.freeze and not (opt.load_pretrain or opt.continue_train):
        raise UserError("--freeze keeps weights of an earlier run; give --load_pretrain DIR")
    resumes = opt.is_train and opt.continue_train
    if resumes and opt.which_epoch != "latest" and not opt.load_pretrain:
        raise UserError(
            "--continue_train resumes from the latest state; to start from another epoch's weights "
            "use --load_pretrain DIR --which_epoch N"
        )


@TRAINING.check
def check_augmentation(opt: argparse.Namespace) -> None:
    moves = [name for name in opt.augment if name in GEOMETRIC]
    if moves and opt.label_nc != 0 and opt.ignore_label is None:
        raise UserError(
            f"--augment {','.join(moves)} brings in borders without a class; give their label with "
            "--ignore_label N"
        )
    if "color" in opt.augment and opt.load_features:
        raise UserError(
            "--augment color changes the photographs, but not the features that --load_features "
            "reads for them: leave out one of the two"
        )


LOSSES = Group(
    "discriminator and losses",
    Flag("--num_D", 2, "scales of the discriminator", integer(1, 30)),
    Flag("--n_layers_D", 3, "downsampling layers of each scale", integer(1)),
    Flag("--ndf", 64, "channels of the discriminator's first layer", CHANNELS),
    Flag("--instance_mean_D", False, "D's coarser scales also see the image's instance means"),
    Flag("--lambda_feat", 10.0, "weight of feature matching and VGG loss", WEIGHT),
    Flag("--no_ganFeat_loss", False, "no feature matching loss"),
    Flag("--no_vgg_loss", False, "no VGG loss"),
    Flag("--vgg_weights", "", "torchvision's vgg19 state dict; default: downloaded", "FILE"),
    Flag("--loss_weights", False, "weight feature matching, VGG and L1 loss by PHASE_weight/"),
    Flag("--lambda_L1", 0.0, "weight of the L1 distance of the pixels", WEIGHT),
    Flag("--lambda_latent", 0.0, "weight of predicting --instance_noise from mean colours", WEIGHT),
    Flag("--no_lsgan", False, "adversarial loss: cross entropy instead of least squares"),
    Flag("--pool_size", 0, "size of the pool of earlier generated images for D", integer(0)),
)


@LOSSES.check
def check_losses(opt: argparse.Namespace) -> None:
    if opt.instance_mean_D and opt.no_instance:
        raise UserError("--instance_mean_D needs instance maps, not --no_instance; leave one out")
    if opt.instance_mean_D and opt.num_D == 1:
        raise UserError(
            "--instance_mean_D shows the means to D's coarser scales, and --num_D 1 has none: give "
            "--num_D 2 or more"
        )
    if opt.lambda_latent and not opt.instance_noise:
        raise UserError(
            "--lambda_latent: there is no noise to predict from the image; give --instance_noise 3 "
            "(or --recipe plus), which needs instance maps and replaces features"
        )
    if opt.output_nc not in (1, 3) and not opt.no_vgg_loss and opt.is_train:
        raise UserError(
            f"--output_nc {opt.output_nc}: the VGG loss sees grey or RGB images; give --no_vgg_loss"
        )
    if opt.loss_weights and opt.no_ganFeat_loss and opt.no_vgg_loss and not opt.lambda_L1:
        raise UserError(
            "--loss_weights applies to feature matching, VGG and L1 loss, but none of them is used"
        )


VALIDATION = Group(
    "validation",
    Flag("--val_phase", None, "validation phase; default: val, else test; none: off", safe_name),
    Flag("--val_freq", 5, "epochs between validations", integer(1)),
    Flag("--val_max", 50, "at most this many scenes, evenly spaced", integer(1)),
    Flag("--best_metric", None, "the measure that selects best_net_*.pth", list(MORE_IS_BETTER)),
    Flag("--patience", None, "stop after this many validations without a better one", integer(1)),
    WEIGHTS_DIR,
)
VALIDATION.check(check_weights_dir)


def flags_without_effect(opt: argparse.Namespace) -> list[str]:
    """A note for each flag that these others leave unused: the one that it needs may have been
    forgotten. Flags with their default count as not given."""
    needs = {
        "--netG local": (opt.netG == "local", ("n_local_enhancers", "n_blocks_local")),
        "features (--instance_feat)": (uses_features(opt), ("feat_num", "nef", "n_downsample_E")),
        "--cond_nc": (opt.cond_nc > 0, ("cond_range", "cond_type")),
        "--label_nc 0": (opt.label_nc == 0, ("input_nc", "input_range", "input_type")),
    }
    parser = TrainOptions().parser()
    return [
        f"note: --{name} has no effect without {needed}"
        for needed, (is_met, names) in needs.items()
        for name in names
        if not is_met and getattr(opt, name) != parser.get_default(name)
    ]


class TrainOptions(BaseOptions):
    is_train = True
    description = "Train pix2pixHD on label maps and photographs."
    groups = [*BaseOptions.groups, SAVING, TRAINING, LOSSES, VALIDATION, SEGMENTERS]

    def defaults(self, opt: argparse.Namespace) -> dict:
        recipe = dict(RECIPES[opt.recipe] if self.is_train else {})
        if opt.no_instance or uses_features(opt):
            recipe.pop("instance_noise", None)  # it needs instance maps, or features replace it
        return super().defaults(opt) | recipe

    def complete(self, opt: argparse.Namespace) -> None:
        super().complete(opt)
        if opt.debug:
            opt.display_freq = opt.print_freq = opt.niter = 1
            opt.niter_decay = 0
            opt.max_dataset_size = min(opt.max_dataset_size or 10, 10)

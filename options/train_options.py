"""The flags of train.py."""

import argparse

from options.base_options import BaseOptions, Parser, integer, number
from util.errors import UserError


class TrainOptions(BaseOptions):
    is_train = True
    description = "Train pix2pixHD on label maps and photographs."

    def declare(self, parser: Parser) -> None:
        super().declare(parser)
        show = parser.add_argument_group("what is shown and saved")
        show.add_argument("--display_freq", type=integer(1), default=100, help="pictures")
        show.add_argument("--print_freq", type=integer(1), default=100, help="pictures")
        show.add_argument("--save_latest_freq", type=integer(1), default=1000, help="pictures")
        show.add_argument("--save_epoch_freq", type=integer(1), default=10, help="epochs")
        show.add_argument("--keep_checkpoints", type=integer(1), default=None, help="newest N only")
        show.add_argument("--no_html", action="store_true", help="no web/index.html")
        show.add_argument("--debug", action="store_true", help="one short epoch, show every step")

        training = parser.add_argument_group("training")
        training.add_argument(
            "--continue_train", action="store_true", help="go on from the last save"
        )
        training.add_argument("--load_pretrain", default="", help="start from the weights in here")
        training.add_argument("--which_epoch", default="latest", help="which weights to load")
        training.add_argument("--phase", default="train", help="which folders to train on")
        training.add_argument("--niter", type=integer(0), default=100, help="epochs at full rate")
        training.add_argument(
            "--niter_decay", type=integer(0), default=100, help="epochs while it falls to zero"
        )
        training.add_argument("--beta1", type=number(0, 1 - 1e-9), default=0.5, help="of Adam")
        training.add_argument("--lr", type=number(0, 1e6), default=0.0002, help="of Adam")
        training.add_argument(
            "--checkpoint_activations",
            action="store_true",
            help="recompute G's residual blocks and VGG in backward: less memory, more time",
        )

        discriminator = parser.add_argument_group("discriminator and losses")
        discriminator.add_argument("--num_D", type=integer(1), default=2, help="scales")
        discriminator.add_argument("--n_layers_D", type=integer(1), default=3)
        discriminator.add_argument("--ndf", type=integer(1), default=64, help="first channels")
        discriminator.add_argument("--lambda_feat", type=number(0, 1e9), default=10.0)
        discriminator.add_argument("--no_ganFeat_loss", action="store_true")
        discriminator.add_argument("--no_vgg_loss", action="store_true")
        discriminator.add_argument(
            "--vgg_weights", default="", help="a torchvision vgg19 state dict; default: download"
        )
        discriminator.add_argument("--no_lsgan", action="store_true", help="cross entropy instead")
        discriminator.add_argument(
            "--pool_size", type=integer(0), default=0, help="old fakes for D"
        )

    def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
        opt = super().parse(argv)
        if opt.debug:
            opt.display_freq = opt.print_freq = opt.niter = 1
            opt.niter_decay = 0
            opt.max_dataset_size = min(opt.max_dataset_size or 10, 10)
        return opt

    def check(self, opt: argparse.Namespace) -> None:
        super().check(opt)
        if opt.model != "pix2pixHD":
            raise UserError(f"--model {opt.model}: only pix2pixHD can be trained")
        if opt.data_type != 32:
            raise UserError(f"--data_type {opt.data_type} is for tests; train with --amp or --fp16")
        if opt.compile and opt.checkpoint_activations and opt.norm == "batch":
            raise UserError(
                "--compile, --checkpoint_activations and --norm batch do not go together: the "
                "compiler cannot keep running statistics from being updated twice; leave one out"
            )
        if opt.niter + opt.niter_decay == 0:
            raise UserError("--niter 0 --niter_decay 0: no epoch to train")
        if opt.continue_train and opt.which_epoch != "latest":
            raise UserError(
                "--continue_train goes on from the latest state; to start from another epoch's "
                "weights use --load_pretrain DIR --which_epoch N"
            )

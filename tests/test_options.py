"""Flags: the reference's names and defaults, checks in one line, opt.txt and opt.json."""

import argparse
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, one_line, run_command

import train
from models import DEFAULTS
from options.base_options import reading_processes
from options.edit_options import EditOptions, LibraryOptions
from options.evaluate_options import EvaluateOptions
from options.test_options import EncoderOptions, TestOptions
from options.train_options import TrainOptions, flags_without_effect
from util.errors import UserError
from util.parser import Flag, Group, Number, integer
from util.run.checkpoints import run_dir
from util.run.flags import NETWORK_FLAGS, OLD_DEFAULTS, TRAINING_FLAGS, write_options

FLAGS = json.loads((Path(__file__).parent / "flags.json").read_text())
COMMANDS = {"train": TrainOptions, "test": TestOptions}
CASES = [(command, flag) for command in COMMANDS for flag in FLAGS[command]]

# Deliberate differences: no flag means the GPU if there is one; test.py generates all images.
DEVIATIONS = {"--gpu_ids": None, "--how_many": None}

# The flags in the states of the first release; OLD_DEFAULTS has those that were added later.
FIRST_FLAGS = """
netG ngf n_downsample_global n_blocks_global n_blocks_local n_local_enhancers norm use_dropout
label_nc input_nc output_nc no_instance instance_feat label_feat feat_num nef n_downsample_E
load_features ndf n_layers_D num_D no_ganFeat_loss niter niter_decay niter_fix_global lr beta1
batchSize pool_size seed lambda_feat no_vgg_loss no_lsgan amp dataroot loadSize fineSize
resize_or_crop serial_batches no_flip max_dataset_size ignore_label
"""

# What a resumed run may change silently: names, speed, logs, and what follows from other flags.
SILENT_FLAGS = """
name checkpoints_dir model gpu_ids local_rank deterministic verbose tf_log fp16 data_type tf32
compile nThreads cache display_winsize n_clusters print_freq display_freq save_latest_freq
save_epoch_freq keep_checkpoints wandb mlflow no_html debug which_epoch recipe continue_train
load_pretrain map_classes vgg_weights checkpoint_activations segmenter_classes
segmenter_width weights_dir
"""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Inherit nothing from the developer's own checkpoints/."""
    monkeypatch.chdir(tmp_path)


def defaults(command: str) -> dict:
    return vars(COMMANDS[command]().parse([]))


@pytest.mark.parametrize("command, flag", CASES, ids=[f"{c} {f['flag']}" for c, f in CASES])
def test_every_flag_of_the_reference_has_its_default(command: str, flag: dict) -> None:
    expected = DEVIATIONS.get(flag["flag"], flag["default"])
    if expected == "inf":
        expected = None  # without limit
    if flag["flag"] == "--gpu_ids":
        expected = [0] if torch.cuda.is_available() else []
    if flag["flag"] == "--nThreads" and torch.cuda.is_available():
        expected = reading_processes(1)
    found = defaults(command)[flag["flag"][2:]]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("cores, gpus, workers", [(2, 1, 2), (16, 1, 8), (16, 4, 3), (8, 8, 2)])
def test_more_processes_read_for_gpus(cores: int, gpus: int, workers: int, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("options.base_options.available_cores", lambda: cores)
    given = ["--gpu_ids", ",".join(map(str, range(gpus))), "--batchSize", str(gpus)]
    assert TrainOptions().parse(given).nThreads == workers
    assert TrainOptions().parse([*given, "--nThreads", "5"]).nThreads == 5
    assert TrainOptions().parse(["--gpu_ids", "-1"]).nThreads == 2


@pytest.mark.parametrize("command, flag", CASES, ids=[f"{c} {f['flag']}" for c, f in CASES])
def test_every_flag_takes_values_of_its_type(command: str, flag: dict) -> None:
    name = flag["flag"]
    if flag["kind"] == "storetrue":
        words, expected = [name], True
    else:
        special = {
            **{"--gpu_ids": ("-1", []), "--model": ("pix2pixHD", "pix2pixHD")},
            **{"--netG": ("local", "local"), "--norm": ("batch", "batch")},
            **{"--resize_or_crop": ("resize_and_crop",) * 2, "--data_type": ("16", 16)},
            **{"--input_nc": ("3", 3), "--output_nc": ("3", 3), "--beta1": ("0.75", 0.75)},
        }
        plain = {"int": ("7", 7), "float": ("2.5", 2.5), "str": ("a/b", "a/b")}
        value, expected = special.get(name, plain[flag["type"]])
        words = [name, value]
    # flags that need others, or that a command refuses
    company = {
        "--load_features": ["--instance_feat"],
        "--niter_fix_global": ["--netG", "local"],
        "--use_encoded_image": ["--instance_feat"],
    }
    refusal = {"--data_type": "train" if command == "train" else None, "--engine": "test"}
    if refusal.get(name) == command:
        with pytest.raises(UserError, match=name):
            COMMANDS[command]().parse(words)
        return
    opt = COMMANDS[command]().parse(words + company.get(name, []))
    assert getattr(opt, name[2:]) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ending:
        COMMANDS[command]().parse(["--help"])
    assert ending.value.code == 0
    words = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert {flag["flag"] for flag in FLAGS[command]} <= words


@pytest.mark.parametrize("options", [TrainOptions, TestOptions, EncoderOptions, EditOptions])
def test_help_explains_every_flag(options: type, capsys: pytest.CaptureFixture) -> None:
    """With the range of every number, and the default unless it is none or the text states it."""
    with pytest.raises(SystemExit):
        options().parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    flags = [flag for group in options.groups for flag in group.flags]
    assert len({flag.name for flag in flags}) == len(flags)
    for flag in flags:
        assert len(flag.help) >= 8 and flag.help in text, flag
        if isinstance(flag.values, Number):
            assert f"{flag.help} ({flag.values}" in text, flag
        if flag.default not in (None, "", []) and flag.default is not False:
            facts = re.search(re.escape(flag.help) + r" \(([^()]*)\)", text)[1]
            assert facts.endswith(f"default: {flag.default}"), flag


def test_inherited_flags_are_those_of_architecture_and_data() -> None:
    """models.DEFAULTS, for callers without flags, has the architecture as well: keep it whole."""
    groups = [group for group in TrainOptions.groups if group.inherited]
    names = {flag.name.removeprefix("--") for group in groups for flag in group.flags}
    without = {"dataroot", "loadSize", "fineSize", "resize_or_crop"}
    assert names - set(DEFAULTS) == without, "add it to DEFAULTS in models/__init__.py"
    assert set(DEFAULTS) <= names


def test_what_a_resumed_run_does_about_each_flag() -> None:
    """A new flag fails here until util/run/flags.py has it, or the list above."""
    flags = {flag.name.split()[0][2:] for group in TrainOptions.groups for flag in group.flags}
    listed = [*NETWORK_FLAGS, *TRAINING_FLAGS, *SILENT_FLAGS.split()]
    assert len(set(listed)) == len(listed), "in two lists"
    assert flags - set(listed) == set(), "in none of the lists of util/run/flags.py"
    assert set(listed) - flags == set(), "no such flag"
    reported = {*NETWORK_FLAGS, *TRAINING_FLAGS}
    assert reported - set(FIRST_FLAGS.split()) == OLD_DEFAULTS.keys(), "in util/run/flags.py"


def test_one_row_adds_a_flag(capsys: pytest.CaptureFixture) -> None:
    """Parsing, ranges, --help and the group's check."""
    group = Group(
        "extra",
        Flag("--log_freq", 5, "epochs between validations", integer(1, 9)),
        Flag("--tags", [], "notes", "WORD"),
    )

    @group.check
    def check_extra(opt: argparse.Namespace) -> None:
        if opt.log_freq > opt.niter:
            raise UserError("--log_freq above --niter")

    class Options(TrainOptions):
        groups = [*TrainOptions.groups, group]

    opt = Options().parse(["--log_freq", "7", "--tags", "a", "--tags", "b"])
    assert (opt.log_freq, opt.tags) == (7, ["a", "b"])
    assert (Options().parse([]).log_freq, Options().parse([]).tags) == (5, [])
    with pytest.raises(UserError, match="--log_freq: '12': expected an integer, 1 to 9"):
        Options().parse(["--log_freq", "12"])
    with pytest.raises(UserError, match="--log_freq above --niter"):
        Options().parse(["--niter", "2"])
    with pytest.raises(SystemExit):
        Options().parse(["--help"])
    assert "epochs between validations (1 to 9; default: 5)" in capsys.readouterr().out


WRONG = {  # flags -> what the line must name
    "unknown flag": ("--lod_size 3", ["--lod_size", "did you mean --loadSize?"]),
    "unlike any flag": ("--xyzzy", ["--xyzzy", "--help"]),
    "abbreviated flag": ("--nit 3", ["--nit"]),
    "stray word": ("label2city", ["label2city"]),
    "no value": ("--ngf", ["--ngf", "expected one argument"]),
    "not a number": ("--ngf x", ["--ngf", "'x'", "1 to 65536"]),
    "no 32-bit label": ("--ignore_label 4294967295", ["--ignore_label", "2147483647"]),
    "zero": ("--batchSize 0", ["--batchSize", "'0'", "at least 1"]),
    "negative": ("--niter -3", ["--niter", "'-3'", "0 to 10"]),
    "fraction": ("--num_D 1.5", ["--num_D", "'1.5'"]),
    "nan rate": ("--lr nan", ["--lr", "'nan'"]),
    "beta1 of 1": ("--beta1 1", ["--beta1", "'1'"]),
    "choice": ("--netG globl", ["--netG", "'globl'", "'global', 'local'"]),
    "mode": ("--resize_or_crop scale", ["--resize_or_crop", "'scale'", "'scale_width'"]),
    "label count": ("--label_nc many", ["--label_nc", "'many'"]),
    "too many labels": ("--label_nc 70000", ["--label_nc", "65536"]),
    "no such gpu": ("--gpu_ids 99", ["--gpu_ids 99", "--gpu_ids -1"]),
    "gpu of words": ("--gpu_ids cuda", ["--gpu_ids 'cuda'"]),
    "name outside": ("--name ../other", ["--name", "'../other'"]),
    "absolute name": ("--name /other", ["--name", "'/other'"]),
    "empty name": ("--name=", ["--name"]),
    "name of the folder itself": ("--name .", ["--name", "'.'"]),
    "phase outside": ("--phase ../train", ["--phase"]),
    "precision": ("--fp16 --amp bf16", ["--fp16", "--amp bf16"]),
    "8 bits": ("--data_type 8", ["--data_type 8"]),
    "features without instances": (
        "--instance_feat --no_instance",
        ["--instance_feat", "--no_instance"],
    ),
    "fitting without loading": ("--instance_feat --fit_features", ["--load_features"]),
    "noise without instances": (
        "--instance_noise 3 --no_instance",
        ["--instance_noise", "--no_instance"],
    ),
    "means without instances": (
        "--instance_mean_D --no_instance",
        ["--instance_mean_D", "--no_instance"],
    ),
    "latent without noise": ("--lambda_latent 10", ["--lambda_latent", "--instance_noise"]),
    "latent beside features": (
        "--lambda_latent 10 --recipe plus --instance_feat",
        ["--lambda_latent", "--instance_noise"],
    ),
    "means without a coarser scale": (
        "--instance_mean_D --num_D 1",
        ["--instance_mean_D", "--num_D 2"],
    ),
    "noise beside features": ("--instance_noise 3 --instance_feat", ["--instance_noise"]),
    "class features of RGB": ("--label_feat --label_nc 0", ["--label_feat", "--label_nc"]),
    "ignored label of RGB": ("--ignore_label 3 --label_nc 0", ["--ignore_label", "--label_nc"]),
    "colours of features": (
        "--instance_feat --load_features --augment color",
        ["--augment color", "--load_features"],
    ),
    "features of no use": ("--load_features", ["--load_features", "--instance_feat"]),
    "features too long": (
        "--load_features --instance_feat --feat_num 5",
        ["--load_features", "4 features"],
    ),
    "global has nothing to fix": ("--niter_fix_global 3", ["--niter_fix_global", "--netG local"]),
    "a range the wrong way round": ("--input_range 5,1", ["--input_range", "LOW,HIGH"]),
    "VGG of two channels": ("--output_nc 2", ["--output_nc 2", "--no_vgg_loss"]),
    "no epoch": ("--niter 0 --niter_decay 0", ["--niter", "--niter_decay"]),
    "model": ("--model ui", ["--model ui"]),
    "weights of no loss": (
        "--loss_weights --no_ganFeat_loss --no_vgg_loss",
        ["--loss_weights", "none of them"],
    ),
    "epoch to continue": ("--continue_train --which_epoch 10", ["--continue_train", "latest"]),
}


@pytest.mark.parametrize("flags, named", WRONG.values(), ids=WRONG)
def test_wrong_flags_end_in_one_line(flags: str, named: list[str], refused, tmp_path: Path) -> None:
    line = refused(train.main, *flags.split())
    for word in named:
        assert word in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [TestOptions, EditOptions])
def test_two_half_precisions_are_refused(options: type) -> None:
    with pytest.raises(UserError, match=r"--data_type 16.* and --amp bf16 cannot be combined"):
        options().parse(["--data_type", "16", "--amp", "bf16"])
    assert options().parse(["--data_type", "16", "--fp16"]).amp == "fp16"


def test_the_editor_reads_no_features_from_files() -> None:
    with pytest.raises(UserError, match="--load_features: the editor encodes"):
        EditOptions().parse(["--instance_feat", "--load_features"])


def test_wrong_flag_through_the_command_line() -> None:
    line = one_line(run_command("train.py", "--n_downsample_globl", "3"))
    assert "--n_downsample_globl" in line and "did you mean --n_downsample_global?" in line


def test_flags_that_stand_for_others() -> None:
    assert TrainOptions().parse(["--fp16"]).amp == "fp16"
    assert TrainOptions().parse(["--label_nc", "auto"]).label_nc == "auto"
    assert TrainOptions().parse(["--max_dataset_size", "inf"]).max_dataset_size is None
    assert TestOptions().parse(["--ntest", "3", "--how_many", "5"]).how_many == 3
    assert TestOptions().parse(["--ntest", "3"]).how_many == 3


@pytest.mark.parametrize(
    "flags, needed, enough",
    [
        ("--n_local_enhancers 2", "--netG local", "--netG local"),
        ("--n_blocks_local 1", "--netG local", "--netG local"),
        ("--feat_num 2", "features (--instance_feat)", "--label_feat"),
        ("--nef 8", "features (--instance_feat)", "--instance_feat"),
        ("--n_downsample_E 3", "features (--instance_feat)", "--instance_feat"),
        ("--cond_type float32", "--cond_nc", "--cond_nc 1"),
        ("--input_nc 4", "--label_nc 0", "--label_nc 0"),
    ],
)
def test_flags_without_effect_are_noted(flags: str, needed: str, enough: str) -> None:
    notes = flags_without_effect(TrainOptions().parse(flags.split()))
    assert notes == [f"note: {flags.split()[0]} has no effect without {needed}"]
    assert not flags_without_effect(TrainOptions().parse([*flags.split(), *enough.split()]))


def test_ignored_label_may_be_any() -> None:
    for flags in ("--ignore_label 255", "--ignore_label 0", "--label_nc auto --ignore_label 255"):
        assert TrainOptions().parse(flags.split()).ignore_label in (0, 255)


def test_debug_is_a_short_run_that_shows_everything() -> None:
    opt = TrainOptions().parse(["--debug"])
    assert (opt.display_freq, opt.print_freq, opt.niter, opt.niter_decay) == (1, 1, 1, 0)
    assert opt.max_dataset_size == 10
    assert TrainOptions().parse(["--debug", "--max_dataset_size", "3"]).max_dataset_size == 3


# opt.txt and opt.json -------------------------------------------------------------------------


def written(monkeypatch: pytest.MonkeyPatch, *flags: str) -> argparse.Namespace:
    """Options as train.py writes them to checkpoints/label2city."""
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    opt = TrainOptions().parse()
    run_dir(opt).mkdir(parents=True)
    write_options(run_dir(opt), opt)
    return opt


def test_every_option_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    opt = written(monkeypatch, *TINY, "--dataroot", "my data")
    record = json.loads((run_dir(opt) / "opt.json").read_text())
    assert {flag: record[flag] for flag in vars(opt)} == vars(opt)
    assert record["command_line"] == " ".join(["train.py", *TINY, "--dataroot", "'my data'"])
    assert record["versions"]["torch"] == torch.__version__
    assert "git_commit" in record
    text = (run_dir(opt) / "opt.txt").read_text().splitlines()
    assert text[0] == "------------ Options -------------"
    assert text[-1] == "-------------- End -------------"
    assert text[1:-1] == [f"{flag}: {value}" for flag, value in sorted(vars(opt).items())]


ARCHITECTURE = {
    **{"netG": "local", "ngf": 6, "n_downsample_global": 2, "n_blocks_global": 3},
    **{"n_blocks_local": 1, "n_local_enhancers": 2, "norm": "batch", "use_dropout": True},
    **{"label_nc": 20, "instance_feat": True, "feat_num": 2, "nef": 5, "n_downsample_E": 3},
    **{"dataroot": "./own", "loadSize": 320, "ignore_label": 255},
}


@pytest.mark.parametrize("options", [TestOptions, EncoderOptions])
def test_later_commands_inherit_architecture_and_data(
    options: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = []
    for flag, value in ARCHITECTURE.items():
        flags += [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    written(monkeypatch, *flags, "--batchSize", "4", "--seed", "9", "--serial_batches")
    opt = options().parse([])
    assert {flag: getattr(opt, flag) for flag in ARCHITECTURE} == ARCHITECTURE
    assert (opt.batchSize, opt.seed, opt.serial_batches) == (1, 0, False)  # not inherited
    given = options().parse(["--ngf", "7", "--dataroot", "./other"])
    assert (given.ngf, given.dataroot, given.nef) == (7, "./other", 5)
    assert options().parse(["--name", "another"]).ngf == 64


@pytest.mark.parametrize("options", [EncoderOptions, LibraryOptions])
def test_the_scenes_to_encode_are_those_of_training(options: type, monkeypatch) -> None:
    written(monkeypatch, "--phase", "small")
    assert (options().parse([]).phase, TestOptions().parse([]).phase) == ("small", "test")
    assert options().parse(["--phase", "other"]).phase == "other"
    assert options().parse(["--name", "another"]).phase == "train"


@pytest.mark.parametrize("options", [TestOptions, EncoderOptions, EditOptions])
def test_auto_is_what_training_counted(
    options: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written(monkeypatch, "--label_nc", "12")
    assert options().parse(["--label_nc", "auto"]).label_nc == 12
    with pytest.raises(UserError, match="--label_nc auto"):
        options().parse(["--label_nc", "auto", "--name", "another"])


@pytest.mark.parametrize("options", [TestOptions, EncoderOptions, EditOptions, EvaluateOptions])
@pytest.mark.parametrize("word", ["auto", "type"])
def test_ranges_are_what_training_measured(
    options: type, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--output_range", word]
    opt = written(monkeypatch, *flags)
    opt.output_range, opt.output_type = [0.0, 255.0], "uint8"  # as resolve_data_flags does
    write_options(run_dir(opt), opt)
    assert options().parse(flags).output_range == [0.0, 255.0]
    expected, more = "no opt.json with a measured range; give --output_range LOW,HIGH", []
    if word == "type":
        expected, more = "float32: such numbers have no range of their own", ["--output_type"]
        more += ["float32"]
    with pytest.raises(UserError, match=expected):
        options().parse([*flags, *more, "--name", "another"])


@pytest.mark.parametrize("options", [TestOptions, EncoderOptions, EvaluateOptions])
def test_ranges_beyond_the_type_are_refused(options: type) -> None:
    flags = ["--output_range", "-1,1"]
    with pytest.raises(UserError, match="--output_range -1,1: uint8 cannot hold it"):
        options().parse(flags)
    assert options().parse([*flags, "--output_type", "float32"]).output_range == [-1, 1]


def test_the_range_of_conditions_is_what_training_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--cond_nc", "1", "--cond_range", "auto"]
    opt = written(monkeypatch, *flags)
    opt.cond_range, opt.cond_type = [2.0, 7.0], "float32"
    write_options(run_dir(opt), opt)
    assert TestOptions().parse(flags).cond_range == [2.0, 7.0]


@pytest.mark.parametrize(
    "trained, tested",
    [
        ("crop", "none"),
        ("scale_width_and_crop", "scale_width"),
        ("none", "none"),
        ("scale_width", "scale_width"),
        ("resize_and_crop", "resize_and_crop"),
    ],
)
def test_tests_use_whole_images(trained: str, tested: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written(monkeypatch, "--resize_or_crop", trained)
    opt = TestOptions().parse([])
    assert (opt.resize_or_crop, opt.loadSize) == (tested, 1024)
    if tested == "resize_and_crop":
        assert opt.fineSize == opt.loadSize  # the crop is all of it
        assert TestOptions().parse(["--loadSize", "2048"]).fineSize == 2048
    for flags in (TestOptions(), EncoderOptions()):  # which may get the training command's flags
        opt = flags.parse(["--resize_or_crop", trained, "--fineSize", "32"])
        assert opt.resize_or_crop == tested
        assert opt.fineSize == (1024 if tested == "resize_and_crop" else 32)


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", "null", '"ngf"', "[" * 10**5])
def test_damaged_opt_json_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "label2city" / "opt.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match=r"opt\.json"):
        TestOptions().parse([])


def test_a_folder_named_opt_json_does_not_count_as_a_missing_file() -> None:
    Path("checkpoints/label2city/opt.json").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        TestOptions().parse([])


@pytest.mark.parametrize(
    "name, value",
    [
        *(("ngf", "64x"), ("ngf", 0), ("ngf", 64.0), ("no_instance", 1), ("netG", "nice")),
        *(("norm", None), ("n_local_enhancers", True), ("output_range", [1])),
        *(("output_range", [5, 1]), ("output_range", ["a", 1]), ("load_pretrain", 5)),
        ("phase", 5),
    ],
)
def test_invalid_values_in_opt_json_are_named(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written(monkeypatch)
    path = Path("checkpoints/label2city/opt.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    expected = re.escape(f"opt.json: {name} is {value!r}, invalid for --{name}")
    with pytest.raises(UserError, match=expected):
        TestOptions().parse([])
    with pytest.raises(UserError, match=expected):
        TrainOptions().parse(["--load_pretrain", str(path.parent)])
    path.rename(path.with_name("replaced_opt.json"))
    with pytest.raises(UserError, match=f"replaced_{expected}"):
        TestOptions().parse(["--which_epoch", "replaced"])

"""Images of any channels and depth, conditions, pixel weights: read, trained on, written."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, one_line, run_command, run_ok, save_png, thorough
from crafted_images import tiff
from PIL import Image

from data.aligned_dataset import AlignedDataset, Geometry
from data.arrays import (
    array_shape,
    geo_tags,
    read_array,
    read_integer_array,
    resize_array,
    write_array,
)
from data.create import create_dataset, measured_range, resolve_data_flags
from data.files import read_integers, scene_key
from data.kinds import image_kind, read_weights
from data.loader import Loader
from data.values import RGB8, Values
from models import load_generator
from models.inference_model import InferenceModel
from models.losses import l1
from options.test_options import TestOptions
from options.train_options import TrainOptions
from util.errors import UserError
from util.pages.colours import to_image

tifffile = pytest.importorskip("tifffile", reason="needs requirements-images.txt")
imagecodecs = pytest.importorskip("imagecodecs", reason="needs requirements-images.txt")

SIZE = (33, 20)  # width, height
RANGES = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}
CASES = [
    (dtype, channels, suffix)
    for dtype in (*RANGES, "float32")
    for channels in (1, 3, 4, 12)
    for suffix in (".png", ".tif", ".npy")
    if suffix != ".png" or (dtype in ("uint8", "uint16") and channels in (1, 3))
]


def noise(dtype: str, channels: int, seed: int = 0) -> np.ndarray:
    """(H, W, C) with both ends of the type's range among the numbers."""
    rng = np.random.default_rng(seed)
    shape = (*SIZE[::-1], channels)
    if dtype == "float32":
        return rng.normal(size=shape).astype(dtype)
    low, high = RANGES[dtype]
    array = rng.integers(low, high + 1, shape).astype(dtype)
    array.flat[:2] = low, high
    return array


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, channels, suffix", CASES)
def test_round_trip(dtype: str, channels: int, suffix: str, tmp_path: Path) -> None:
    """From a file to a tensor and back to a file: within half a step, here nothing lost at all."""
    array, path = noise(dtype, channels), tmp_path / f"a{suffix}"
    write_array(array, path)
    read = read_array(path)
    assert read.dtype == array.dtype and array_shape(path) == array.shape
    np.testing.assert_array_equal(read, array)
    low, high = RANGES.get(dtype, (float(array.min()), float(array.max())))
    values = Values(channels, dtype, low, high)
    tensor = values.to_tensor(read)
    assert tensor.dtype == torch.float32 and tensor.shape == (channels, *array.shape[:2])
    assert tensor.min() == pytest.approx(-1, abs=1e-6)
    assert tensor.max() == pytest.approx(1, abs=1e-6)
    back = values.to_array(tensor)
    assert back.dtype == array.dtype
    if dtype == "float32":
        np.testing.assert_allclose(back, array, atol=1e-6 * (high - low))
    else:
        np.testing.assert_array_equal(back, array)
        beyond = values.to_array(torch.full((channels, 1, 1), 2.0))
        assert (beyond == high).all()  # and does not wrap around


@pytest.mark.parametrize("dtype", [*RANGES, "float32"])
def test_numbers_are_scaled_to_tensors_by_the_range(dtype: str) -> None:
    array = noise(dtype, 2)
    low, high = -3.0, 100.0
    got = Values(2, dtype, low, high).to_tensor(array).numpy()
    expected = (array.astype(np.float64) - low) / (high - low) * 2 - 1  # and none is clipped
    np.testing.assert_allclose(got.transpose(1, 2, 0), expected, rtol=1e-5, atol=1e-5)


def test_pages_planes_and_other_layouts_become_channels(tmp_path: Path) -> None:
    array = noise("uint16", 5)
    planes = array.transpose(2, 0, 1)
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        for page in planes:
            writer.write(page, photometric="minisblack", contiguous=True)
    separate = {"photometric": "minisblack", "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "planes.tif", planes, **separate)
    bands = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "lzw.tif", array, compression="lzw", **bands)
    tifffile.imwrite(tmp_path / "big.tif", array, byteorder=">", **bands)
    np.savez(tmp_path / "one.npz", array)
    np.savez_compressed(tmp_path / "small.npz", array)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(array))
    np.save(tmp_path / "swapped.npy", array.astype(">u2"))
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_array(path), array, err_msg=path.name)
        assert array_shape(path) == array.shape


def test_the_content_of_a_file_counts_not_its_extension(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "jpeg.png", "JPEG")
    expected = np.asarray(Image.open(tmp_path / "jpeg.png"))
    np.testing.assert_array_equal(read_array(tmp_path / "jpeg.png")[..., 0], expected)
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.jpg", "PNG")
    np.testing.assert_array_equal(read_array(tmp_path / "deep.jpg")[..., 0], deep)


def test_arrays_among_usual_photographs(tmp_path: Path) -> None:
    """An array that test.py wrote is read again; other channels and types are refused."""
    array = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    photographs = image_kind(RGB8, "output")
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(photographs.load(tmp_path / "a.npy"), array)
    assert photographs.size(tmp_path / "a.npy") == (6, 8)
    for name, other in (("grey", array[..., :1]), ("deep", array.astype(np.uint16))):
        np.save(tmp_path / f"{name}.npy", other)
        with pytest.raises(UserError, match=f"{name}.npy"):
            photographs.load(tmp_path / f"{name}.npy")


def test_instance_ids_of_32_bits(tmp_path: Path) -> None:
    """Ids that differ stay different, from the file to the encoder of the smaller stage."""
    ids = np.array([2**24, 2**24 + 1, 2**31, 2**32 - 2, 2**32 - 1, 5], np.uint32)
    ids = np.repeat(np.repeat(ids[None], 4, 0), 4, 1)
    np.save(tmp_path / "ids.npy", ids)
    tifffile.imwrite(tmp_path / "ids.tif", ids, photometric="minisblack")
    found = read_integer_array(tmp_path / "ids.npy", "instance")
    np.testing.assert_array_equal(found.view(np.uint32), ids)
    np.testing.assert_array_equal(read_integers(tmp_path / "ids.tif", "instance"), found)
    np.save(tmp_path / "mixed.npy", ids.astype(np.int64) - 6)
    for name, what in (("ids.npy", "label"), ("mixed.npy", "instance")):
        with pytest.raises(UserError, match="beyond 32 bits"):
            read_integer_array(tmp_path / name, what)

    opt = TestOptions().parse(["--name", "run", "--gpu_ids", "-1"])
    model = InferenceModel(opt, torch.device("cpu"), tmp_path, with_generator=False)
    model.encoder_shrink, model.encoder_multiple, seen = 2, 1, []
    model.netE = lambda image, regions: seen.append(regions) or image
    model.encode(torch.zeros(1, 3, *ids.shape), torch.from_numpy(found)[None, None])
    assert seen[0].shape[-1] == 12 and seen[0].unique().numel() == 6


ODD: dict[str, Callable[[Path], object]] = {
    "nan.npy": lambda path: np.save(path, np.array([[1.0, np.nan]], np.float32)),
    "double.npy": lambda path: np.save(path, np.zeros((4, 4))),
    "objects.npy": lambda path: np.save(path, np.array([[{}]]), allow_pickle=True),
    "line.npy": lambda path: np.save(path, np.zeros(4, np.uint8)),
    "deep.npy": lambda path: np.save(path, np.zeros((2, 2, 2, 2), np.uint8)),
    "empty.npy": lambda path: np.save(path, np.zeros((0, 4), np.uint8)),
    "two.npz": lambda path: np.savez(path, np.zeros((2, 2)), np.ones((2, 2))),
    "inverted.tif": lambda path: tifffile.imwrite(
        path, np.zeros((4, 4), np.uint8), photometric="miniswhite"
    ),
    "two_sizes.tif": lambda path: [
        tifffile.imwrite(path, np.zeros((n, n), np.uint8), append=n > 4) for n in (4, 6)
    ],
    "nibbles.tif": lambda path: path.write_bytes(tiff(np.eye(4, 6, dtype=np.uint8), 4, 1)),
    "palette.tif": lambda path: path.write_bytes(
        tiff(np.eye(4, 6, dtype=np.uint8), 8, 3, palette=range(768))
    ),
    "rgb_pages.tif": lambda path: tifffile.imwrite(path, np.zeros((2, 8, 8, 3), np.uint8)),
    "text.png": lambda path: path.write_text("no image"),
    "palette.png": lambda path: Image.fromarray(np.eye(4, dtype=np.uint8)).convert("P").save(path),
    "bits.png": lambda path: Image.new("1", (4, 4)).save(path),
    "huge.npy": lambda path: path.write_bytes(
        b"\x93NUMPY\x01\x00" + (header := repr(
            {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)}
        ).ljust(117).encode() + b"\n").__len__().to_bytes(2, "little") + header
    ),
}  # fmt: skip


@pytest.mark.thorough
def test_damaged_tiff_files_print_only_the_error(tmp_path):
    """The libraries would add their own lines."""
    image = np.zeros((9, 7, 4), np.uint16)
    tifffile.imwrite(tmp_path / "bands.tif", image, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "label.tif", image[..., 0])
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:150])  # in the middle of the tags
    lines = ["import sys", "from pathlib import Path", "from data.arrays import read_array"]
    lines += ["from data.files import read_integers", "from util.errors import UserError"]
    lines += ["for read in (lambda p: read_integers(p, 'label')), read_array:"]
    lines += [" for path in Path(sys.argv[1]).iterdir():", "  try: read(path)"]
    lines += ["  except UserError: print('refused')"]
    command = [sys.executable, "-c", "\n".join(lines), tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("refused") == 4, done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_read_exactly_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    ODD[name](path)
    with pytest.raises(UserError, match=name) as error:
        read_array(path)
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused_or_read_correctly(tmp_path: Path) -> None:
    """200 files with bytes changed, cut off or inserted: an array, or one line that names the file.

    PNG and npz have checksums: what is read from them is what was written.
    """
    rng = np.random.default_rng(3)
    refused = 0
    for trial in range(200):
        dtype, channels, suffix = CASES[trial % len(CASES)]
        array, path = noise(dtype, channels, trial), tmp_path / f"{trial}{suffix}"
        write_array(array, path)
        content = bytearray(path.read_bytes())
        place, how = int(rng.integers(len(content))), trial % 3
        if how == 0:
            content[place] ^= int(rng.integers(1, 256))
        elif how == 1:
            del content[place:]
        else:
            content[place:place] = rng.bytes(int(rng.integers(1, 50)))
        path.write_bytes(content)
        try:
            got = read_array(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
            continue
        assert got.ndim == 3
        if suffix == ".png":
            np.testing.assert_array_equal(got, array)
    assert refused > 60


def test_resizing_agrees_with_pillow() -> None:
    array, size = noise("uint8", 3), (17, 41)
    image = Image.fromarray(array)
    for smooth, method in ((True, Image.Resampling.BICUBIC), (False, Image.Resampling.NEAREST)):
        expected = np.asarray(image.resize(size, method))
        np.testing.assert_array_equal(resize_array(array, size, smooth), expected)
        deep = resize_array(array.astype(np.uint16), size, smooth)
        assert np.abs(deep.clip(0, 255).astype(int) - expected).max() <= (2 if smooth else 0)
        floats = resize_array(array.astype(np.float32), size, smooth)
        assert np.abs(floats.clip(0, 255) - expected).max() <= (2 if smooth else 0)


@pytest.mark.parametrize("old, new", [(2048, 640), (720, 270), (1920, 144), (150, 112), (7, 20)])
def test_nearest_rows_and_columns_equal_pillows(old: int, new: int) -> None:
    """Where two are equally near, Pillow's rounding decides."""
    array = np.arange(old, dtype=np.int32)
    for image, size in ((array[None], (new, 1)), (array[:, None], (1, new))):
        expected = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))
        np.testing.assert_array_equal(resize_array(image, size, smooth=False), expected)


def test_a_georeference_is_passed_on(tmp_path: Path) -> None:
    tags = [
        (33550, "d", 3, (0.5, 0.5, 0.0), True),
        (33922, "d", 6, (0, 0, 0, 100.0, 200.0, 0), True),
        (34735, "H", 4, (1, 1, 0, 0), True),
    ]
    source, path = tmp_path / "map.tif", tmp_path / "image.tif"
    label = np.zeros(SIZE[::-1], np.uint8)
    tifffile.imwrite(source, label, photometric="minisblack", extratags=tags)
    write_array(noise("float32", 2), path, geo_tags(source, *SIZE))
    with tifffile.TiffFile(path) as file:
        for code, _, _, value, _ in tags:
            assert file.pages[0].tags[code].value == value
    whole = source.read_bytes()
    for place in range(len(whole) - label.size):  # whichever tag is damaged: no traceback
        source.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        geo_tags(source, *SIZE)
    Image.fromarray(label).save(source, "PNG")
    assert geo_tags(source, *SIZE) == []


def test_the_georeference_of_a_scaled_image_covers_the_same_area(tmp_path: Path) -> None:
    """The location of a corner and of a pixel inside, by each way to state it."""
    matrix = np.array([[0.5, 0.1, 0, 100], [0.2, -0.5, 0, 200], [0, 0, 0, 0], [0, 0, 0, 1]])
    tags = [
        (33550, "d", 3, (0.5, 0.4, 0.0), True),
        (33922, "d", 6, (3.0, 2, 0, 100, 200, 0), True),
        (34264, "d", 16, tuple(matrix.flatten()), True),
    ]
    source = tmp_path / "map.tif"
    label = np.zeros((12, 20), np.uint8)
    tifffile.imwrite(source, label, photometric="minisblack", extratags=tags)
    scale, tie, scaled = (tag[3] for tag in geo_tags(source, 40, 6))  # twice as wide, half as high
    assert scale == (0.25, 0.8, 0.0) and tie[:2] == (6.0, 1.0) and tie[3:5] == (100.0, 200.0)
    for i, j in ((0, 0), (7, 5)):
        place = np.reshape(scaled, (4, 4)) @ [2 * i, j / 2, 0, 1]
        np.testing.assert_allclose(place, matrix @ [i, j, 0, 1])


# -- training --------------------------------------------------------------------------------------


@pytest.fixture
def bands(toy_data: Path, tmp_path: Path) -> Path:
    """12 bands of uint16 in, one of float32 out, and a depth map: computed by formulas from the toy
    photographs, so that the truth is known."""
    root = tmp_path / "bands"
    for phase in ("train", "test"):
        for name in ("A", "B", "cond", "weight"):
            (root / f"{phase}_{name}").mkdir(parents=True)
        for path in sorted((toy_data / f"{phase}_img").iterdir()):
            rgb = np.asarray(Image.open(path).convert("RGB")).astype(np.float64)
            mixes = np.random.default_rng(1).dirichlet([1, 1, 1], 12)
            depth = (np.linspace(1, 0, len(rgb))[:, None] + rgb[..., 0] / 255) / 2
            truth = rgb[..., 1] / 255 * depth * 50 - 10
            stem = path.stem
            tifffile.imwrite(
                root / f"{phase}_A" / f"{stem}.tif",
                (rgb @ mixes.T * 200).astype(np.uint16),
                photometric="minisblack",
                planarconfig="contig",
            )
            np.save(root / f"{phase}_B" / f"{stem}.npy", truth.astype(np.float32))
            np.save(root / f"{phase}_cond" / f"{stem}.npy", depth.astype(np.float32))
            np.save(root / f"{phase}_weight" / f"{stem}.npy", (depth > 0.5).astype(np.uint8))
    return root


BANDS = [
    *("--label_nc", 0, "--input_nc", 12, "--output_nc", 1, "--no_instance", "--lambda_L1", 10),
    *("--output_range", "auto"),
]
COND = ["--cond_nc", 1, "--cond_range", "0,1", "--loss_weights"]
FEW = ["--niter", 1, "--niter_decay", 1, "--val_freq", 2, "--no_html"]


@pytest.mark.parametrize("more", [*thorough([]), COND], ids=["bands", "conditions and weights"])
def test_bands_train_resume_generate_and_evaluate(
    bands: Path, tmp_path: Path, more: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--dataroot", bands, "--checkpoints_dir", tmp_path]
    flags = [*TINY, *BANDS, *more, *where]
    output = run_ok("train.py", "--name", "whole", *flags, *FEW)
    assert "12 x uint16, 0 to 65535 as -1 to 1; bands or pages" in output
    half = run_command("train.py", "--name", "half", *flags, "--niter", 1, "--niter_decay", 0)
    assert half.returncode == 0, half.stderr
    again = run_command("train.py", "--name", "half", *flags, *FEW, "--continue_train")
    assert again.returncode == 0, again.stderr
    for net in ("G", "D"):
        weights = [torch.load(tmp_path / n / f"latest_net_{net}.pth") for n in ("whole", "half")]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    results = tmp_path / "results"
    named = ["--name", "whole", "--checkpoints_dir", tmp_path, "--results_dir", results]
    tested = run_command("test.py", *named)
    assert tested.returncode == 0, tested.stderr
    folder = results / "whole" / "test_latest"
    written = sorted(folder.rglob("*_synthesized_image.tif"))
    page = (folder / "index.html").read_text()
    assert len(written) == 2 and "as black to white" in page
    assert "synthesized_image_view.png" in page
    measured = run_command("evaluate.py", *named)
    assert measured.returncode == 0, measured.stderr
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    last = json.loads((tmp_path / "whole" / "validation.jsonl").read_text().splitlines()[-1])
    assert all(metrics[name] == pytest.approx(last[name], rel=1e-5) for name in ("l1", "ssim"))

    # the figure by hand, from the files
    opt = json.loads((tmp_path / "whole" / "opt.json").read_text())
    low, high = opt["output_range"]
    errors = []
    for path in written:
        made = tifffile.imread(path)
        truth = np.load(
            bands / "test_B" / f"{path.name.removesuffix('_synthesized_image.tif')}.npy"
        )
        assert made.dtype == np.float32 and made.shape == truth.shape
        errors.append(np.abs(made.astype(np.float64) - truth).mean() * 255 / (high - low))
    assert metrics["l1"] == pytest.approx(np.mean(errors), rel=1e-6)

    # the library, files without a data set and ONNX generate the same numbers
    generator = load_generator(tmp_path / "whole")
    key = written[0].name.removesuffix("_synthesized_image.tif")
    maps = tifffile.imread(bands / "test_A" / f"{key}.tif")
    cond = np.load(bands / "test_cond" / f"{key}.npy") if more else None
    np.testing.assert_array_equal(generator(maps, cond=cond)[..., 0], tifffile.imread(written[0]))
    inputs = ["--input", bands / "test_A", "--output", tmp_path / "out"]
    inputs += ["--input_cond", bands / "test_cond"] if more else []
    files = run_command("test.py", *named, *inputs)
    assert files.returncode == 0, files.stderr
    assert (tmp_path / "out" / f"{key}.tif").read_bytes() == written[0].read_bytes()


@pytest.mark.thorough
def test_an_onnx_graph_of_bands_and_conditions(bands: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs requirements-onnx.txt")
    flags = [*TINY, *BANDS, *COND, "--dataroot", bands, "--checkpoints_dir", tmp_path]
    once = ["--niter", 1, "--niter_decay", 0, "--no_html", "--val_phase", "none"]
    run_ok("train.py", "--name", "run", *flags, *once)
    named = ["--name", "run", "--checkpoints_dir", tmp_path, "--results_dir", tmp_path / "plain"]
    run_ok("test.py", *named, "--export_onnx", tmp_path / "net.onnx")
    run_ok("test.py", *named)
    named[-1] = tmp_path / "graph"
    run_ok("test.py", *named, "--onnx", tmp_path / "net.onnx")
    for path in (tmp_path / "plain").rglob("*_image.tif"):
        other = tmp_path / "graph" / path.relative_to(tmp_path / "plain")
        np.testing.assert_allclose(tifffile.imread(path), tifffile.imread(other), atol=1e-3)


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_all_maps_are_cropped_and_flipped_alike(bands: Path, cache: str) -> None:
    """In the toy's formulas the output follows from the input and the condition, pixel by pixel."""
    flags = ["--resize_or_crop", "crop", "--fineSize", "16", "--cache", cache, "--gpu_ids", "-1"]
    opt = TrainOptions().parse([*map(str, [*BANDS, *COND, "--dataroot", bands, *flags])])
    opt.input_type, opt.output_type, opt.cond_type = "uint16", "float32", "float32"
    opt.output_range = (-10.0, 40.0)
    dataset = create_dataset(opt, training=True)
    mixes = np.random.default_rng(1).dirichlet([1, 1, 1], 12)
    for epoch in range(4):
        item = dataset[epoch, 0]
        bands_of = (item["label"].numpy() + 1) / 2 * 65535 / 200
        rgb = np.linalg.lstsq(mixes, bands_of.reshape(12, -1), rcond=None)[0].reshape(3, 16, 16)
        depth = (item["cond"][0].numpy() + 1) / 2
        truth = rgb[1] / 255 * depth * 50 - 10
        np.testing.assert_allclose((item["image"][0].numpy() + 1) * 25 - 10, truth, atol=0.05)
        np.testing.assert_array_equal(item["loss_weight"][0].numpy(), depth > 0.5)


REFUSALS = {
    "holds 12 channels": (["--input_nc", 4], "12 channels, but --input_nc is 4"),
    "holds more than Pillow takes": (["--input_nc", 3], "--input_nc"),
    "a range of floats": (["--output_range", "type"], "give --output_range LOW,HIGH, or auto"),
    "a range beyond the type": (["--input_range", "0,70000"], "uint16 cannot hold it"),
    "no range": (["--output_range", "7,7"], "expected LOW,HIGH, type or auto"),
    "tiny range": (["--output_range", "0,1e-45"], "expected LOW,HIGH, type or auto"),
    "another type": (["--input_type", "float32", "--input_range", "0,1"], "numbers of type uint16"),
    "VGG of bands": (["--output_nc", 2], "the VGG loss sees grey or RGB images"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refused(bands: Path, tmp_path: Path, what: str) -> None:
    flags, expected = REFUSALS[what]
    tiny = [flag for flag in TINY if flag != "--no_vgg_loss"] if "VGG" in what else TINY
    where = ["--name", "x", "--dataroot", bands, "--checkpoints_dir", tmp_path]
    assert expected in one_line(run_command("train.py", *tiny, *BANDS, *where, *flags))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1"])
def test_a_range_is_measured_on_what_training_reads(mode: str, tmp_path: Path) -> None:
    """An alpha channel of 255 is no part of a photograph; palettes and single bits become RGB."""
    dark = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("RGB")
    image = dark.convert(mode)
    for folder in ("train_A", "train_B"):
        (tmp_path / folder).mkdir()
        image.save(tmp_path / folder / "x.png")
    flags = ["--label_nc", 0, "--output_range", "auto", "--dataroot", tmp_path, *TINY]
    opt = TrainOptions().parse([str(flag) for flag in flags])
    resolve_data_flags(opt)
    expected = np.percentile(np.asarray(image.convert("RGB")), (0.1, 99.9))
    assert opt.output_range == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("saved", "dtype", "expected"),
    [(True, "uint8", [0, 99]), (False, "uint8", [9, 200]), (True, "uint16", [9, 200])],
)
def test_only_a_run_with_weights_and_of_this_type_keeps_its_range(
    saved: bool, dtype: str, expected: list, tmp_path: Path
) -> None:
    for folder in ("train_A", "train_B"):
        save_png(tmp_path / folder / "x.png", np.full((8, 8, 3), (9, 60, 200), np.uint8))
    run = tmp_path / "ck" / "run"
    run.mkdir(parents=True)
    (run / "opt.json").write_text(f'{{"output_range": [0, 99], "output_type": "{dtype}"}}')
    if saved:
        (run / "latest_net_G.pth").touch()
    flags = ["--label_nc", 0, "--output_range", "auto", "--dataroot", tmp_path, *TINY]
    flags += ["--checkpoints_dir", tmp_path / "ck", "--name", "run", "--continue_train"]
    opt = TrainOptions().parse([str(flag) for flag in flags])
    resolve_data_flags(opt)
    assert list(opt.output_range) == expected


def test_a_range_is_measured_on_few_files() -> None:
    seen = []
    measured_range([Path(f"{number}") for number in range(399)], lambda p: seen.append(p) or [0, 1])
    assert len(seen) == 200


def test_cityscapes_disparity_maps_belong_to_their_scenes() -> None:
    names = "X_disparity.png", "X_gtFine_labelIds.png"
    assert [scene_key(Path(name), Path()) for name in names] == ["X", "X"]


def test_the_check_reports_ranges(bands: Path) -> None:
    done = run_command("-m", "data.check", *TINY, *BANDS, *COND, "--dataroot", bands)
    assert done.returncode == 0, done.stdout
    assert "input: 12 x uint16" in done.stdout and "image: 1 x float32" in done.stdout
    assert "cond: 1 x float32" in done.stdout and "below" in done.stdout
    for path in [*(bands / "train_cond").iterdir()]:
        path.rename(path.with_name(f"{scene_key(path, path.parent)}_depth.npy"))
    path = next((bands / "train_cond").iterdir())
    np.save(path, np.full((32, 64), np.inf, np.float32))
    done = run_command("-m", "data.check", *TINY, *BANDS, *COND, "--dataroot", bands)
    assert done.returncode == 1 and "NaN or infinite" in done.stdout
    assert "1 problems" in done.stdout
    (bands / "train_cond").rename(bands / "train_depth")
    done = run_command("-m", "data.check", *TINY, *BANDS, *COND, "--dataroot", bands)
    assert "holds no folder train_cond; --cond_nc reads its maps there" in done.stderr + done.stdout


def test_the_editor_refuses_other_images(tmp_path: Path, toy_data: Path) -> None:
    from tiny_run import write_run

    write_run(tmp_path, "run", cond_nc=1)
    write_run(tmp_path, "grey", output_nc=1)
    for name, expected in (("run", "--cond_nc"), ("grey", "8-bit RGB")):
        flags = ["--name", name, "--checkpoints_dir", tmp_path, "--dataroot", toy_data]
        assert expected in one_line(run_command("edit.py", *flags))


def test_labels_with_deep_photographs_and_features(toy_data: Path, tmp_path: Path) -> None:
    """Label maps to 16-bit RGB, with instance features: test.py writes 16-bit RGB PNG."""
    root = tmp_path / "deep"
    shutil.copytree(toy_data, root)
    for path in root.glob("*_img/*"):
        rgb = np.asarray(Image.open(path).convert("RGB")).astype(np.uint16) * 257
        path.unlink()
        write_array(rgb, path.with_suffix(".png"))
    flags = [*TINY, "--dataroot", root, "--checkpoints_dir", tmp_path, "--name", "run"]
    small = ["--instance_feat", "--nef", 4, "--n_downsample_E", 1]
    run_ok("train.py", *flags, *FEW, *small)
    named = ["--name", "run", "--checkpoints_dir", tmp_path, "--results_dir", tmp_path / "results"]
    run_ok("test.py", *named, "--use_encoded_image")
    for path in (tmp_path / "results").rglob("*_synthesized_image.png"):
        image = read_array(path)
        assert image.dtype == np.uint16 and image.shape == (32, 64, 3) and image.max() > 255


# -- pixel weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 12), (4, 6)])
def test_the_l1_distance_with_weights(size: tuple[int, int]) -> None:
    """Against the formula, forward and backward; maps of another size take the mean weight."""
    torch.manual_seed(0)
    fake = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    real, weights = torch.randn(2, 3, *size).double(), torch.rand(2, 1, 8, 12).double()
    fine = weights if size == (8, 12) else weights.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    expected = (fine * (fake - real).abs()).mean()
    got = l1(fake, real, weights)
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(value, fake)[0] for value in (got, expected)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(l1(fake, real, torch.ones_like(weights)), l1(fake, real))


def test_weights_of_zero_leave_the_adversarial_loss(bands: Path, tmp_path: Path) -> None:
    for path in (bands / "train_weight").iterdir():
        np.save(path, np.zeros((32, 64), np.uint8))
    flags = [*TINY, *BANDS, *COND, "--dataroot", bands, "--checkpoints_dir", tmp_path]
    flags += ["--name", "run", *FEW, "--print_freq", 1, "--val_phase", "none"]
    run_ok("train.py", *flags)
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows and all(row["G_GAN_Feat"] == row["G_L1"] == 0 < row["G_GAN"] for row in rows)


def test_weights_are_not_negative(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([[0.5, 2.0]], np.float32))
    np.testing.assert_array_equal(read_weights(path), [[0.5, 2.0]])
    np.save(path, np.array([[-1.0]], np.float32))
    with pytest.raises(UserError, match="non-negative loss weights"):
        read_weights(path)


def test_views() -> None:
    """One channel is shown as grey; of more than three, the first three."""
    tensor = torch.linspace(-1, 1, 5 * 4).reshape(5, 2, 2)
    assert (to_image(tensor[:1]) == to_image(tensor[:2])).all()
    np.testing.assert_array_equal(to_image(tensor), to_image(tensor[:3]))
    assert RGB8.describe_view() == ""
    assert (
        Values(1, "float32", -2, 3).describe_view() == "channel 1 of 1, -2 to 3 as black to white"
    )


def test_integer_maps_in_npy_files(own_data: Path) -> None:
    plain = AlignedDataset(own_data, "train", 35, Geometry("none"))[0]
    for kind in ("label", "inst"):
        for path in (own_data / f"train_{kind}").iterdir():
            np.save(path.with_suffix(".npy"), np.asarray(Image.open(path)))
            path.unlink()
    item = AlignedDataset(own_data, "train", 35, Geometry("none"))[0]
    for kind in ("label", "inst", "image"):
        assert torch.equal(item[kind], plain[kind]), kind
    assert isinstance(Loader(AlignedDataset(own_data, "train", 35, Geometry("none")), 1), Loader)

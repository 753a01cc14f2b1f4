"""Palettes, class names, and images from tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from util.errors import UserError
from util.files import replacing
from util.pages.colours import (
    CITYSCAPES_NAMES,
    class_id,
    class_name,
    colour_label,
    palette,
    save_image,
    to_image,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


def test_cityscapes_colours():
    label = np.array([[7, 26], [33, 34]], np.uint8)
    expected = [[[128, 64, 128], [0, 0, 142]], [[119, 11, 32], [0, 0, 142]]]
    assert colour_label(label, 35).tolist() == expected
    assert len(CITYSCAPES_NAMES) == 35
    assert (CITYSCAPES_NAMES[7], CITYSCAPES_NAMES[34]) == ("road", "license plate")


@pytest.mark.skipif(not GOLDEN.exists(), reason="no ../shared/golden")
@pytest.mark.parametrize("case", ["labels_512p", "features_512p"])
def test_colours_equal_the_references(case):
    images = np.load(GOLDEN / case / "images.npz")
    stems = [key.removeprefix("label/") for key in images if key.startswith("label/")]
    assert stems
    for stem in stems:
        expected = images[f"label/{stem}"]
        (path,) = (GOLDEN / "data").glob(f"*_label/{stem}.png")
        with Image.open(path) as file:
            small = file.resize(expected.shape[1::-1], Image.Resampling.NEAREST)
        np.testing.assert_array_equal(colour_label(np.array(small), 35), expected)


def test_other_palettes_are_distinct_and_begin_with_black():
    # VOC's first classes, from its development kit
    first = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert palette(21)[:5].tolist() == first
    assert len(np.unique(palette(65536), axis=0)) == 65536
    top = colour_label(np.array([[65535]], np.uint16), 65536)
    assert top.shape == (1, 1, 3) and top.dtype == np.uint8


@pytest.mark.parametrize("label", [np.array([[35]]), np.array([[-1]]), np.zeros((1, 2, 2), int)])
def test_colour_label_refuses_other_arrays(label):
    with pytest.raises(ValueError):
        colour_label(label, 35)


def test_class_id():
    assert class_id("car", 35) == class_id("26", 35) == 26
    assert class_id("Traffic_Light", 35) == 19
    assert class_id("7", 8) == 7
    with pytest.raises(UserError, match=r"'cat'.*0 to 34.*unlabeled, .*license plate"):
        class_id("cat", 35)
    for wrong in ("35", "-1", "1.5", ""):
        with pytest.raises(UserError, match="0 to 34"):
            class_id(wrong, 35)
    with pytest.raises(UserError, match=r"an id from 0 to 2$"):
        class_id("car", 3)
    assert class_id("24", 0) == 24  # instance maps give it
    with pytest.raises(UserError, match=r"expected an id$"):
        class_id("car", 0)


def test_class_name():
    assert class_name(26, 35) == "car" and class_name(26, 36) == "class 26"
    assert class_name(-1, 35) == "class -1" and class_name(35, 35) == "class 35"


def test_to_image_clips_and_truncates():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, float("nan")], requires_grad=True)
    image = to_image(values.expand(3, 2, 6))
    assert image.shape == (2, 6, 3) and image.dtype == np.uint8
    assert image[0, :, 0].tolist() == [0, 0, 127, 254, 255, 0]
    assert to_image(torch.zeros(1, 4, 5, dtype=torch.bfloat16)).shape == (4, 5, 3)
    with pytest.raises(ValueError, match="1, 3, 4, 4"):
        to_image(torch.zeros(1, 3, 4, 4))


def test_channels_keep_their_order():
    image = to_image(torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1))
    assert image.tolist() == [[[0, 127, 255]]]


@pytest.mark.parametrize("name, form", [("a.png", "PNG"), ("a.JPG", "JPEG")])
def test_save_image(tmp_path, name, form):
    image = np.full((8, 8, 3), 77, np.uint8)
    save_image(image, tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.format == form
        np.testing.assert_array_equal(saved, image)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ValueError, match="png"):
        save_image(image, tmp_path / "a.gif")


def test_a_jpeg_keeps_the_colours_of_narrow_things(tmp_path):
    """Poles on a pavement, a pixel wide."""
    image = colour_label(np.tile(np.array([8, 17]), (16, 8)), 35)
    save_image(image, tmp_path / "a.jpg", quality=90)
    with Image.open(tmp_path / "a.jpg") as saved:
        assert np.abs(np.asarray(saved).astype(int) - image).mean() < 10


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

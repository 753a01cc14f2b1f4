"""Label and instance maps as the networks see them, on maps drawn by hand."""

import numpy as np
import pytest
import torch

from models.instance_maps import (
    edges,
    instance_class,
    instance_noise,
    network_input,
    one_hot,
    pad_to_multiple,
)


def maps(rows: list[str], meaning: dict[str, int] | None = None) -> torch.Tensor:
    """Rows of characters to integers (1, 1, H, W): digits, or what meaning says."""
    values = [[meaning[c] if meaning else int(c) for c in row] for row in rows]
    return torch.tensor(values, dtype=torch.int32)[None, None]


DRAWN = {
    "one instance": (["aaa", "aaa"], ["000", "000"]),
    "two side by side": (["aabb", "aabb"], ["0110", "0110"]),
    "one above the other": (["aaa", "aaa", "bbb", "bbb"], ["000", "111", "111", "000"]),
    "a single pixel": (
        ["aaaaa", "aaaaa", "aabaa", "aaaaa", "aaaaa"],
        ["00000", "00100", "01110", "00100", "00000"],
    ),
    "corners touch": (["aab", "aab", "bba"], ["011", "111", "111"]),
    "at the border": (["baaa", "aaaa"], ["1100", "1000"]),
    "a line": (["aba"], ["111"]),
    "one pixel": (["a"], ["0"]),
}


@pytest.mark.parametrize("ids", [(0, 1), (26001, 26002), (33000, -32536), (65535, 65536)])
@pytest.mark.parametrize("drawing, marked", DRAWN.values(), ids=DRAWN)
def test_edges_of_hand_drawn_maps(drawing: list, marked: list, ids: tuple[int, int]) -> None:
    found = edges(maps(drawing, {"a": ids[0], "b": ids[1]}))
    assert torch.equal(found.int(), maps(marked))


def test_edges_of_a_batch_stay_in_their_image() -> None:
    first, second = maps(["aabb"], {"a": 1, "b": 2}), maps(["aaaa"], {"a": 2})
    found = edges(torch.cat([first, second]))
    assert found.int().flatten(1).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_one_hot_equals_numpy(kind: torch.dtype) -> None:
    label = np.random.default_rng(0).integers(0, 35, (2, 1, 5, 7))
    found = one_hot(torch.from_numpy(label).to(kind), 35)
    assert found.dtype == torch.float32 and found.shape == (2, 35, 5, 7)
    np.testing.assert_array_equal(found, np.eye(35)[label[:, 0]].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("ignored", [255, -1, 300, 2])
def test_ignored_label_is_zero_in_all_channels(ignored: int) -> None:
    label = torch.tensor([[0, 1, ignored], [ignored, 3, 0]], dtype=torch.int32)[None, None]
    found = one_hot(label, 4, ignored)
    assert found.sum(1)[0].tolist() == [[1, 1, 0], [0, 1, 1]]
    assert found.argmax(1)[0].tolist() == [[0, 1, 0], [0, 3, 0]]


def test_a_label_beyond_the_classes_is_an_error() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        one_hot(torch.full((1, 1, 2, 2), 4), 4)


@pytest.mark.parametrize(
    "size, multiple, padded",
    [((4, 8), 4, (4, 8)), ((5, 8), 4, (8, 8)), ((4, 9), 8, (8, 16)), ((1, 1), 4, (4, 4))],
)
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.float32])
def test_padding_repeats_the_last_row_and_column(
    size: tuple, multiple: int, padded: tuple, kind: torch.dtype
) -> None:
    x = torch.arange(2 * size[0] * size[1]).view(1, 2, *size).to(kind)
    found = pad_to_multiple(x, multiple)
    assert found.dtype == kind
    grow = [(0, 0), (0, 0), (0, padded[0] - size[0]), (0, padded[1] - size[1])]
    np.testing.assert_array_equal(found, np.pad(x.numpy(), grow, mode="edge"))


@pytest.mark.parametrize(
    "inst_id, expected", [(7, 7), (0, 0), (26, 26), (26003, 26), (33000, 33), (4000001007, 4000001)]
)
def test_class_of_an_instance_id(inst_id: int, expected: int) -> None:
    assert instance_class(inst_id) == expected
    assert instance_class(int(np.uint32(inst_id).view(np.int32))) == expected  # as it is read


def test_negative_ids_are_classes_of_their_own() -> None:
    assert [instance_class(inst_id) for inst_id in (-1, -999)] == [-1, -999]


def test_noise_is_one_point_per_instance_far_from_others() -> None:
    ids = np.array([[7, 26000, 26000, 33000, -5, 2**31 - 1]])
    found = instance_noise(torch.tensor(ids, dtype=torch.int32)[None, None], 3)
    assert found.shape == (1, 3, 1, 6) and found.dtype == torch.float32
    for channel, step in enumerate((53685, 43977, 36025)):
        expected = [(int(i) * step) % 65536 / 32768 - 1 for i in ids[0]]
        np.testing.assert_array_equal(found[0, channel, 0], expected)

    cars = instance_noise(torch.arange(26000, 26020).view(1, 1, 1, -1), 3)[0, :, 0].T  # (20, 3)
    distances = torch.cdist(cars, cars) + 9 * torch.eye(20)
    assert distances.min() > 0.3  # of 2: a grid of 27 points would have 0.67
    assert cars.mean(0).abs().max() < 0.3


def test_network_input_is_labels_then_edges() -> None:
    label, inst = maps(["0122"]), maps(["aabb"], {"a": 24001, "b": 33000})
    found = network_input(label, inst, 3)
    assert found.dtype == torch.float32 and found.shape == (1, 4, 1, 4)
    assert found[0, :, 0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]]
    assert torch.equal(network_input(label, None, 3), found[:, :3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_network_input_in_half_precision_is_exact(dtype: torch.dtype) -> None:
    """Labels and edges take half the memory; next to floats they are float32, and those exact."""
    label, inst = maps(["0122"]), maps(["aabb"], {"a": 24001, "b": 33000})
    found = network_input(label, inst, 3, dtype=dtype)
    assert found.dtype == dtype and torch.equal(found.float(), network_input(label, inst, 3))
    depth = torch.tensor([[[[1.001, 0, -0.3, 7e6]]]])
    found = network_input(label, inst, 3, cond=depth, dtype=dtype)
    assert torch.equal(found, network_input(label, inst, 3, cond=depth))
    assert torch.equal(found[:, 4:], depth)


def test_network_input_of_rgb_is_the_image_itself() -> None:
    image, inst = torch.rand(1, 3, 1, 4), maps(["abbb"], {"a": 1, "b": 2})
    found = network_input(image, inst, 0)
    assert torch.equal(found[:, :3], image)
    assert found[0, 3, 0].tolist() == [1, 1, 0, 0]
    assert torch.equal(network_input(image, None, 0), image)


def test_network_input_leaves_ignored_pixels_out() -> None:
    label = torch.tensor([[[[0, 255, 1]]]], dtype=torch.uint8)
    assert network_input(label, None, 2, 255)[0, :, 0].tolist() == [[1, 0, 0], [0, 0, 1]]

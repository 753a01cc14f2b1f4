"""UIModel: edits against hand-made results, random edits against rebuilding, exact undo."""

import io
import json
import threading
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import write_run

from editor.library import LibraryObject
from editor.record import download, edit_list, encoded, replay, replay_file
from editor.scenes import Scenes
from editor.session import Session, surroundings
from models import create_model
from models.instance_maps import network_input, pad_to_multiple
from models.masks import box_of, outline, stroke
from models.scene import shape_rows
from models.styles import StyleChooser, paint
from models.ui_model import UIModel
from options.edit_options import EditOptions
from util.errors import UserError

ROAD, BUILDING, SKY, CAR = 7, 11, 23, 26


def scene() -> tuple[np.ndarray, np.ndarray]:
    """24x40: sky over building over road, two cars."""
    label = np.full((24, 40), SKY, np.uint8)
    label[8:16] = BUILDING
    label[16:] = ROAD
    inst = label.astype(np.int32)
    for number, left in enumerate((4, 22)):
        label[14:20, left : left + 10] = CAR
        inst[14:20, left : left + 10] = 26000 + number
    return label, inst


def editor(folder: Path, *flags: object, **run: object) -> UIModel:
    """A UIModel with random weights, without a scene."""
    write_run(folder, "run", **run)
    argv = ["--name", "run", "--checkpoints_dir", str(folder), "--gpu_ids", "-1"]
    return create_model(EditOptions().parse([*argv, *map(str, flags)]), torch.device("cpu"))


@pytest.fixture
def ui(tmp_path: Path) -> UIModel:
    ui = editor(tmp_path)
    ui.open(*scene(), "a_scene")
    return ui


def seen(ui: UIModel) -> torch.Tensor:
    """What the generator is given for the scene's image."""
    given = []

    def generate(x: torch.Tensor) -> torch.Tensor:
        given.append(x)
        return torch.zeros(1, 3, *x.shape[-2:])

    with mock.patch.object(ui.networks, "run_generator", generate):
        ui._generate(ui.features)
    return given[0]


def rebuilt(ui: UIModel) -> torch.Tensor:
    """What the generator must see, from the maps only."""
    multiple, min_side = ui.networks.multiple, ui.networks.min_side
    maps = [torch.from_numpy(m.astype(np.int64))[None, None] for m in (ui.label, ui.inst)]
    label, inst = (pad_to_multiple(m, multiple, min_side) for m in maps)
    opt = ui.networks.opt
    x = network_input(label, None if opt.no_instance else inst, opt.label_nc, opt.ignore_label)
    if ui.has_features:
        regions = (label if opt.label_feat else inst)[0, 0].numpy()
        x = torch.cat([x, torch.from_numpy(paint(regions, ui.features, opt.feat_num))[None]], 1)
    return x


def state(ui: UIModel) -> tuple:
    features = {i: v.tobytes() for i, v in ui.features.items()}
    return ui.label.tobytes(), ui.inst.tobytes(), features


def random_edit(ui: UIModel, rng: np.random.Generator) -> bool:
    """Any of the edits with random arguments."""
    height, width = ui.shape
    y, x = int(rng.integers(height)), int(rng.integers(width))
    chosen = ui.select(y, x).instance
    other = ui.select(int(rng.integers(height)), int(rng.integers(width))).instance
    label = int(rng.choice([ROAD, BUILDING, SKY, 21, 24, CAR, 33]))
    feature = rng.normal(size=3).tolist()
    points = (rng.random((int(rng.integers(1, 5)), 2)) * [height + 8, width + 8] - 4).tolist()
    points[0] = [y, x]
    mask = rng.random((int(rng.integers(1, 9)), int(rng.integers(1, 9)))) < 0.7
    mask[0, 0] = True
    tools = [
        lambda: ui.paint(points, label, float(rng.random() * 4)),
        lambda: ui.paint(points, label, float(rng.random() * 4)),
        lambda: ui.set_class(chosen, label),
        lambda: ui.set_class(chosen, like=other),
        lambda: ui.add(shape_rows(mask), label, y, x, float(rng.random() + 0.5)),
        lambda: ui.move(chosen, int(rng.integers(-6, 7)), int(rng.integers(-6, 7))),
        lambda: ui.delete(chosen),
    ]
    if ui.has_features:
        tools += [
            lambda: ui.set_style(chosen, feature),
            lambda: ui.set_style(chosen, feature, whole_class=True),
            lambda: ui.set_styles({chosen: feature, other: feature[::-1]}),
            lambda: ui.add(shape_rows(mask), label, y, x, 1.0, feature),
        ]
    if rng.random() < 0.02:
        return ui.reset()
    try:
        return tools[rng.integers(len(tools))]()
    except UserError:  # e.g. the only instance left cannot be deleted
        return False


KINDS = {
    "features": {},
    "class features": {"label_feat": True, "instance_feat": False},
    "no features": {"instance_feat": False},
    "no instances": {"instance_feat": False, "no_instance": True},
    "16 bits": {"data_type": 16},
}


@pytest.mark.parametrize("kind", KINDS)
def test_random_edits_agree_with_rebuilding_and_undo_exactly(kind: str, tmp_path: Path) -> None:
    flags = KINDS[kind]
    bits = flags.get("data_type", 32)
    ui = editor(
        tmp_path, "--data_type", bits, **{k: v for k, v in flags.items() if k != "data_type"}
    )
    label, inst = scene()
    ui.open(label[:-1, :-3], inst[:-1, :-3], "odd size, so padded")
    rng = np.random.default_rng(7)
    states = [state(ui)]
    while len(states) <= 200:
        if random_edit(ui, rng):
            states.append(state(ui))
            assert torch.equal(seen(ui), rebuilt(ui).to(ui.networks.dtype)), ui.edits[-1]
    assert len(ui.edits) == 200
    edits = json.loads(json.dumps(ui.edits))
    for number in reversed(range(200)):
        assert ui.undo() == edits[number]
        assert state(ui) == states[number]
    assert ui.undo() is None and not ui.can_undo
    for number in range(200):
        assert ui.redo() == edits[number]
        assert state(ui) == states[number + 1]
    assert ui.redo() is None
    again = ui.another()
    again.open(label[:-1, :-3], inst[:-1, :-3], "odd size, so padded")
    for edit in edits:
        assert again.apply(edit)
    assert state(again) == states[-1]


def test_select_gives_instance_class_and_mask(ui: UIModel) -> None:
    chosen = ui.select(15, 25)
    assert (chosen.instance, chosen.label) == (26001, CAR)
    assert chosen.mask.sum() == 60 and box_of(chosen.mask) == np.s_[14:20, 22:32]
    for y, x in ((24, 0), (0, 40), (-1, 0)):
        with pytest.raises(UserError):
            ui.select(y, x)


def test_the_image_is_the_generators_output(ui: UIModel) -> None:
    label, inst = scene()
    feat = paint(inst, ui.features, 3)
    assert np.array_equal(ui.picture(), ui.networks(label, inst, feat))
    assert ui.picture() is ui.picture()  # not generated twice


def test_a_scene_opens_in_the_styles_that_test_py_chooses(ui: UIModel) -> None:
    expected = StyleChooser(ui.styles, {}, 0).choose({26000: CAR, 26001: CAR}, "a_scene")
    for i, vector in expected.items():
        assert np.array_equal(ui.features[i], vector)


def test_style_of_one_instance_and_of_its_class(ui: UIModel) -> None:
    label, inst = scene()
    label[20, 0] = CAR  # one pixel does not make the road a car
    ui.open(label, inst)
    vector = np.array([0.5, -0.25, 1.0], np.float32)
    other = ui.features[26001]
    assert ui.set_style(26000, vector)
    assert np.array_equal(ui.feature(26000), vector) and np.array_equal(ui.feature(26001), other)
    assert not ui.set_style(26000, vector)  # nothing changes, nothing to undo
    assert len(ui.edits) == 1
    assert ui.set_style(26000, vector, whole_class=True)
    assert np.array_equal(ui.feature(26001), vector)
    assert not np.array_equal(ui.features.get(ROAD), vector)


def test_previews_are_the_images_that_styles_would_give(ui: UIModel) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    found = ui.previews(26000, vectors)
    assert found.shape == (3, 24, 40, 3)
    before = state(ui)
    for vector, preview in zip(vectors, found):
        ui.set_style(26000, vector)
        assert np.abs(ui.picture().astype(int) - preview).max() <= 1  # a batch rounds differently
        ui.undo()
    assert state(ui) == before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_out_of_memory_is_one_line_and_the_scene_survives(ui: UIModel, monkeypatch, error) -> None:
    before = ui.picture()
    generate = ui.networks.run_generator

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(ui.networks, "run_generator", fail)
    ui.paint([(4, 4)], CAR, 3)
    for work in (ui.picture, lambda: ui.previews(26000, np.zeros((2, 3)))):
        with pytest.raises(UserError, match="out of memory on cpu with an image of 40x24") as found:
            work()
        assert "\n" not in str(found.value)
    assert ui.last_picture is before
    monkeypatch.setattr(ui.networks, "run_generator", generate)
    assert not np.array_equal(ui.picture(), before)
    monkeypatch.setattr(ui.networks, "run_generator", lambda x: x[1:].mean(5))
    with pytest.raises(IndexError):  # other errors keep their traceback
        ui.undo() and ui.picture()


@pytest.mark.thorough
def test_the_page_says_that_memory_ran_out(ui: UIModel, monkeypatch) -> None:
    pytest.importorskip("gradio")
    from editor.page import EditorPage
    from editor.session import Session

    files = SimpleNamespace(names=[], photos={})
    page, session = EditorPage(ui, files, []), Session(ui, files, [])
    page.build()
    session.ui.picture()

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ui.networks, "run_generator", fail)
    session.choose_tool("Paint")
    session.choose_label(CAR)
    view = page._act(session, lambda: session.pointer((session.scene, [(4.0, 4.0)]), 3.0, 1.0))
    assert "out of memory" in str(view[page.status])
    assert ui.label[4, 4] == CAR  # the edit stays, and the last image is shown
    session.choose_tool("Select")
    session.pointer((session.scene, [(4.0, 4.0)]), 3.0, 1.0)
    monkeypatch.setattr(Session, "wants_gallery", True)
    monkeypatch.setitem(ui.styles, session.selected.label, np.zeros((2, 3), np.float32))
    assert "out of memory" in str(page.generate_gallery(session))


def editing(ui: UIModel, files: object) -> tuple:
    """A session of the editor, and the page's generate_gallery for it."""
    pytest.importorskip("gradio")
    from editor.page import EditorPage
    from editor.session import Session

    session = Session(ui, files, [])
    return session, lambda: EditorPage(ui, files, []).generate_gallery(session)


def test_the_page_speaks_of_styles_only_if_there_are_some(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from editor import markup
    from editor.session import Session

    for features in (True, False):
        ui = editor(tmp_path / str(features), instance_feat=features)
        session = Session(ui, SimpleNamespace(names=[], photos={}), [])
        assert ("choose one of its styles" in markup.hint(session)) == features
        assert ("has no styles" in markup.gallery(session)) == (not features)


def test_a_refusal_goes_with_the_tool(ui: UIModel) -> None:
    session, _ = editing(ui, SimpleNamespace(names=[], photos={}))
    session.status = "click an object first, then its new class"
    session.choose_tool("Paint")
    assert not session.status


@pytest.mark.thorough
def test_actions_come_between_previews(ui: UIModel, monkeypatch) -> None:
    """And previews for an object that is no longer selected are dropped."""
    session, _ = editing(ui, SimpleNamespace(names=[], photos={}))
    ui.styles[CAR] = np.zeros((5, 3), np.float32)
    session.pointer((session.scene, [(16.0, 8.0)]), 3.0, 1.0)
    assert session.selected.label == CAR and session.wants_gallery
    previews, begun, answered = ui.previews, threading.Event(), threading.Event()
    count = []

    def slow(instance: int, features: np.ndarray) -> np.ndarray:
        count.append(instance)
        begun.set()
        time.sleep(0.05)
        return previews(instance, features)

    def click() -> None:
        begun.wait()
        with session.lock:
            session.pointer((session.scene, [(0.0, 0.0)]), 3.0, 1.0)
        answered.set()

    monkeypatch.setattr(ui, "previews", slow)
    thread = threading.Thread(target=click)
    thread.start()
    assert not session.generate_gallery() and answered.is_set()
    thread.join()
    assert len(count) < 5 and session.gallery is None
    session.pointer((session.scene, [(16.0, 8.0)]), 3.0, 1.0)
    assert session.generate_gallery() and len(session.gallery) == 5
    assert not session.generate_gallery()  # it is complete


def test_the_lists_show_what_is_open_after_a_refusal(ui: UIModel) -> None:
    """The browser shows what was chosen there, until it is sent the list again."""
    pytest.importorskip("gradio")
    from editor.page import EditorPage
    from editor.session import Session

    def refuse() -> str:
        raise UserError("instance ids 8 to 70000: the editor takes 0 to 65535")

    files = SimpleNamespace(names=["a", "b"], photos=["a", "b"])
    page, session = EditorPage(ui, files, []), Session(ui, files, [])
    page.build()
    session.scene = "a"
    lists = {page.scene, page.photo_scene}
    assert lists <= page._act(session, lambda: "Opened.").keys()
    assert not lists & page._act(session, lambda: "Selected.").keys()
    view = page._act(session, refuse)
    assert lists <= view.keys() and view[page.scene].value == "a"


def test_previews_are_made_anew_when_other_objects_change_too(ui: UIModel) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    session, _ = editing(ui, SimpleNamespace(names=[], photos=["s"], photo=lambda name: photo))
    session.scene = "s"
    ui.styles[CAR] = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    session.pointer((session.scene, [(16.0, 8.0)]), 3.0, 1.0)
    changes = (
        lambda: session.choose_style(2, whole_class=True),
        session.take_all_styles,
        lambda: session.choose_style(1, whole_class=False),
    )
    for change in changes:
        session.generate_gallery()
        change()
        shown, session.gallery = session.gallery, None
        session.generate_gallery()
        assert shown is None or np.array_equal(shown, session.gallery)
    assert shown is not None  # after the style of one object they are kept


@pytest.mark.thorough
def test_a_refused_photograph_leaves_the_previous_one(ui: UIModel) -> None:
    def load(name: str) -> tuple:
        if name == "bad":
            raise UserError("label 99")
        return None, np.zeros((24, 40), np.int32), None

    photo = np.zeros((24, 40, 3), np.uint8)
    session, _ = editing(ui, SimpleNamespace(photo=lambda name: photo + (name == "bad"), load=load))
    session.open_photo("good")
    with pytest.raises(UserError, match="label 99"):
        session.open_photo("bad")
    assert (session.photo == photo).all()


def test_a_photograph_can_be_opened_again_after_an_uploaded_one(ui: UIModel) -> None:
    photo = np.zeros((24, 40, 3), np.uint8)
    scenes = SimpleNamespace(
        photo=lambda name: photo,
        load=lambda name: (None, photo[..., 0], None),
        uploaded_photo=lambda path: photo + 1,
    )
    session, _ = editing(ui, scenes)
    session.open_photo("first")
    session.upload_photo("own.png")
    assert (session.photo == 1).all() and session.photo_inst is None
    session.open_photo("first")
    assert (session.photo == 0).all() and session.photo_inst is not None


def test_an_open_scene_keeps_only_integer_maps_and_its_last_image(ui: UIModel) -> None:
    """Per pixel: label 1 byte, instances 2, image 3; plus the opened maps, compressed."""
    label, inst = (np.kron(m, np.ones((16, 16), m.dtype)) for m in scene())
    first = ui.another()
    first.open(label, inst)
    first.picture()
    tracemalloc.start()
    one = ui.another()
    one.open(label, inst)
    one.picture()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    arrays = [v for v in vars(one).values() if isinstance(v, (np.ndarray, torch.Tensor))]
    assert sum(a.nbytes for a in arrays) == 6 * label.size
    assert kept < 6.2 * label.size


def test_class_of_a_chosen_kind_and_of_a_second_point(ui: UIModel) -> None:
    mask = ui.select(15, 5).mask
    assert ui.set_class(26000, 24)  # a car becomes a person, with a fresh id
    assert (ui.label[mask] == 24).all() and (ui.inst[mask] == 24000).all()
    assert ui.set_class(24000, like=26001)
    assert (ui.label[mask] == CAR).all() and (ui.inst[mask] == 26000).all()
    assert np.array_equal(ui.features[26000], ui.features[26001])
    assert ui.set_class(26000, BUILDING)  # stuff is one instance
    assert (ui.inst[mask] == BUILDING).all()
    assert not ui.set_class(BUILDING, BUILDING)


def test_paint_extends_what_it_begins_on_or_makes_a_new_object(ui: UIModel) -> None:
    assert ui.paint([(16, 13), (16, 17)], CAR, 1)
    assert ui.inst[16, 17] == 26000 and ui.label[16, 17] == CAR
    assert ui.paint([(22, 2)], CAR, 0)
    assert ui.inst[22, 2] == 26002 and (ui.inst == 26002).sum() == 1
    assert 26002 in ui.features
    assert ui.paint([(2, 2)], BUILDING, 1.5)
    assert ui.inst[2, 2] == BUILDING
    assert ui.label[1:4, 1:4].tolist() == [[BUILDING] * 3] * 3  # 1.5 reaches the diagonal
    assert ui.label[2, 4] == SKY


def test_deleted_objects_are_filled_by_the_nearest_stuff_not_by_the_next_car(
    tmp_path: Path,
) -> None:
    ui = editor(tmp_path)
    label, inst = scene()
    label[14:20, 14:22], inst[14:20, 14:22] = CAR, 26005  # bumper to bumper
    ui.open(label, inst)
    assert ui.delete(26005)
    assert (ui.label[14:17, 14:22] == BUILDING).all() and (ui.label[17:20, 14:22] == ROAD).all()
    assert (ui.inst[19, 14:22] == ROAD).all()


@pytest.mark.parametrize("ids", [{1: 901, 2: 902}, {1: 0, 2: 0}], ids=["panoptic", "zero"])
def test_deleted_objects_are_not_filled_by_their_class_if_every_class_has_ids(
    ids: dict, tmp_path: Path
) -> None:
    ui = editor(tmp_path, label_nc=10)
    label = np.full((16, 24), 1)
    label[8:] = 2
    inst = np.vectorize(ids.get)(label)
    for column, number in ((4, 17), (10, 18)):  # bumper to bumper
        label[10:14, column : column + 6], inst[10:14, column : column + 6] = 5, number
    ui.open(label, inst)
    assert ui.delete(17)
    assert (ui.label[10:14, 4:10] == 2).all() and (ui.inst[10:14, 4:10] == ids[2]).all()
    assert (ui.label[10:14, 10:16] == 5).all()


def test_move_takes_the_pixels_along_and_fills_the_hole(ui: UIModel) -> None:
    assert ui.move(26000, 3, -2)
    assert box_of(ui.inst == 26000) == np.s_[17:23, 2:12]
    assert (ui.label[ui.inst == 26000] == CAR).all()
    assert (ui.label[14:16, 4:14] == BUILDING).all()
    assert ui.move(26000, 0, -8)  # partly out of the image
    assert box_of(ui.inst == 26000) == np.s_[17:23, 0:4]
    with pytest.raises(UserError, match="out of the image"):
        ui.move(26000, 0, -4)


def test_an_added_object_lies_centred_with_its_style(ui: UIModel) -> None:
    shape = ["##.", "###", "###"]
    assert ui.add(shape, CAR, 5, 20, 2.0, [1, 2, 3])
    box = box_of(ui.inst == 26002)
    assert box in (np.s_[2:8, 18:24], np.s_[3:9, 18:24])
    assert (ui.inst == 26002).sum() == 8 * 4 and ui.inst[box[0].start, 23] == SKY
    assert ui.feature(26002).tolist() == [1, 2, 3]


def test_an_added_object_is_selected_though_the_pointer_is_in_its_hole(ui: UIModel) -> None:
    ring, pole = np.ones((5, 5), bool), 17
    ring[1:4, 1:4] = False
    session = Session(ui, None, [LibraryObject(pole, ring, None, np.zeros((5, 5, 4), np.uint8))])
    session.choose_tool("Add")
    session.choose_object(0)
    assert session.pointer((session.scene, [(5, 20)]), 3.0, 1.0) == "Added a pole."
    assert session.selected.label == pole and ui.label[5, 20] == SKY


def test_an_object_that_vanishes_when_scaled_is_not_reported_as_outside(ui: UIModel) -> None:
    ring = ["#######", *["#.....#"] * 5, "#######"]
    with pytest.raises(UserError, match=r"nothing is left of the object at 0\.25 times its size"):
        ui.add(ring, CAR, 10, 10, 0.25)


def test_style_from_a_photograph(ui: UIModel) -> None:
    rng = np.random.default_rng(1)
    photo = rng.integers(0, 256, (24, 40, 3), np.uint8)
    every = ui.photo_features(photo)
    assert set(every) == {SKY, BUILDING, ROAD, 26000, 26001}
    one = ui.photo_feature(photo, 15, 25, scene()[1])
    assert np.allclose(one, every[26001], atol=1e-5)
    assert ui.set_styles(every)
    assert np.allclose(ui.feature(26001), one, atol=1e-5)
    assert ui.photo_feature(photo, 3, 3).shape == (3,)


def test_an_edit_list_needs_no_styles(ui: UIModel, tmp_path: Path) -> None:
    """The styles chosen for new objects are in the list: other clusters change nothing."""
    car = ui.select(15, 6).instance
    ui.set_class(car, label=28)
    ui.paint([(3, 3), (5, 9)], 24, 2)
    ui.add(["##", "##"], 25, 20, 35)
    ui.delete(26001)
    ui.paint([(22, 30)], CAR, 1)  # a new car under the id, and in the style, of one that vanished
    assert ui.edits[-1]["feature"] == ui.feature(int(ui.inst[22, 30])).tolist()
    record = edit_list(ui)
    bare = UIModel(ui.networks)
    replay(bare, record)
    assert bare.features.keys() == ui.features.keys()
    assert all((bare.features[i] == ui.features[i]).all() for i in ui.features)
    np.testing.assert_array_equal(bare.picture(), ui.picture())


def test_an_edit_list_without_styles_says_so(
    ui: UIModel, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the first versions wrote them: new objects without their features."""
    ui.add(["##", "##"], 25, 20, 35)
    record = edit_list(ui)
    replay(UIModel(ui.networks), record)
    assert "warning" not in capfd.readouterr().out
    del record["edits"][0]["feature"]
    replay(UIModel(ui.networks), record)
    assert "no styles for rider" in capfd.readouterr().out


def test_an_edit_list_is_refused_by_a_model_whose_features_are_of_other_regions(
    ui: UIModel, tmp_path: Path
) -> None:
    record = edit_list(ui)
    of_classes = editor(tmp_path, instance_feat=False, label_feat=True)
    with pytest.raises(UserError, match="made with label_feat False, but this model has True"):
        replay(of_classes, record)
    replay(ui, {key: value for key, value in record.items() if key != "label_feat"})  # an older one


def test_an_object_made_like_one_without_a_style_keeps_its_style_in_the_edit_list(
    ui: UIModel,
) -> None:
    label, inst = scene()
    label[14:20, 4:10] = 28  # most of the first car, of a class without styles
    del ui.styles[28]
    ui.open(label, inst)
    ui.paint([(14, 6), (19, 6)], ROAD, 2)  # less than half is left of that
    assert ui.select(15, 12).label == CAR and ui.feature(26000) is None
    ui.set_class(26001, like=26000)
    bare = UIModel(ui.networks)
    replay(bare, edit_list(ui))
    np.testing.assert_array_equal(bare.picture(), ui.picture())


def test_edits_with_numpy_numbers_can_be_saved(ui: UIModel) -> None:
    ui.add(["##", "##"], np.int64(CAR), np.float32(4), np.int32(5), scale=np.float32(1.5))
    ui.paint([(np.float32(3), np.int8(3))], np.uint8(24), np.float32(2))
    ui.move(np.uint16(26000), np.int64(1), np.int8(1))
    assert ui.edits == json.loads(json.dumps(ui.edits)) and len(ui.edits) == 3


@pytest.mark.parametrize("highest", [0, 255, 256, 65535])
def test_maps_keep_their_numbers_in_a_png(highest: int) -> None:
    array = np.array([[0, 3, highest]], np.int32)
    ending, _, content = encoded(array)
    assert ending == "png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), array)


def test_maps_that_a_png_does_not_hold_are_saved_as_npy(tmp_path: Path) -> None:
    ui = editor(tmp_path, ignore_label=-1)
    label, inst = scene()
    label = label.astype(np.int32)
    label[:4] = -1
    ui.open(label, inst, "a")
    kinds = ("photograph", "inst", "label", "edits")
    files = {kind: download(ui, kind) for kind in kinds}
    assert [name for name, *_ in files.values()] == [
        *("a_photograph.png", "a_inst.png", "a_label.npy", "a_edits.json")
    ]
    assert np.array_equal(np.load(io.BytesIO(files["label"][2])), label)
    (tmp_path / "edits.json").write_bytes(files["edits"][2])
    written = replay_file(ui.another(), tmp_path / "edits.json", tmp_path / "out")
    assert {path.name for path in written} == {
        *("photograph.png", "inst.png", "label.npy", "label_colours.png")
    }
    assert np.array_equal(np.load(tmp_path / "out" / "label.npy"), label)


def test_an_edit_list_may_have_been_saved_again_by_an_editor_of_text(tmp_path: Path) -> None:
    ui = editor(tmp_path)
    ui.open(*scene(), "Zürich")
    text = json.dumps(edit_list(ui), ensure_ascii=False, indent=1).replace("\n", "\r\n")
    for encoding in ("utf-8-sig", "utf-16"):  # Notepad's, PowerShell's
        (tmp_path / "edits.json").write_bytes(text.encode(encoding))
        again = ui.another()
        replay_file(again, tmp_path / "edits.json", tmp_path / "out")
        assert again.name == "Zürich" and np.array_equal(again.label, ui.label)


def test_photographs_are_read_as_the_data_set_reads_them(own_data: Path) -> None:
    opt = EditOptions().parse(["--dataroot", str(own_data), "--phase", "train", "--loadSize", "32"])
    scenes = Scenes(opt)
    name, expected = scenes.photos[0], scenes.photo(scenes.photos[0])
    (path,) = (own_data / "train_img").glob(f"{name}_*")
    np.save(path.with_suffix(".npy"), np.asarray(Image.open(path).convert("RGB")))
    path.unlink()
    np.testing.assert_array_equal(Scenes(opt).photo(name), expected)


def test_reset_can_be_undone(ui: UIModel) -> None:
    first = state(ui)
    ui.paint([(5, 5)], CAR, 3)
    ui.set_style(26000, [1, 1, 1])
    edited = state(ui)
    assert ui.reset()
    assert state(ui) == first and not ui.reset()
    ui.undo()
    assert state(ui) == edited


def test_a_new_edit_forgets_what_was_undone(ui: UIModel) -> None:
    ui.delete(26000)
    ui.undo()
    ui.delete(26001)
    assert not ui.can_redo and [edit["instance"] for edit in ui.edits] == [26001]


WRONG = {
    "not an edit": [1, 2],
    "no tool": {"instance": 26000},
    "a method that is no edit": {"tool": "open", "label": 3},
    "missing argument": {"tool": "delete"},
    "unknown argument": {"tool": "delete", "instance": 26000, "colour": 3},
    "no such instance": {"tool": "delete", "instance": 5},
    "instance of text": {"tool": "delete", "instance": "26000"},
    "class too large": {"tool": "set_class", "instance": 26000, "label": 35},
    "neither class nor model": {"tool": "set_class", "instance": 26000},
    "feature too short": {"tool": "set_style", "instance": 26000, "feature": [1, 2]},
    "feature of NaN": {"tool": "set_style", "instance": 26000, "feature": [1, 2, float("nan")]},
    "feature beyond float32": {"tool": "set_style", "instance": 26000, "feature": [1e39, 1, 1]},
    "feature of text": {"tool": "set_style", "instance": 26000, "feature": "red"},
    "styles of a list": {"tool": "set_styles", "features": [1]},
    "no points": {"tool": "paint", "points": [], "label": 7, "radius": 1},
    "point of three": {"tool": "paint", "points": [[1, 2, 3]], "label": 7, "radius": 1},
    "stroke outside": {"tool": "paint", "points": [[-40, -40]], "label": 7, "radius": 1},
    "infinite radius": {"tool": "paint", "points": [[1, 1]], "label": 7, "radius": float("inf")},
    "empty shape": {"tool": "add", "shape": ["..", ".."], "label": 7, "y": 1, "x": 1},
    "ragged shape": {"tool": "add", "shape": ["#", "##"], "label": 7, "y": 1, "x": 1},
    "shape with a null": {"tool": "add", "shape": [["#", None]], "label": 7, "y": 1, "x": 1},
    "huge object": {"tool": "add", "shape": ["#"], "label": 7, "y": 1, "x": 1, "scale": 1e6},
    "object outside": {"tool": "add", "shape": ["#"], "label": 7, "y": 900, "x": 1},
    "moved away": {"tool": "move", "instance": 26000, "dy": 0, "dx": 36},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("edit", WRONG.values(), ids=WRONG)
def test_wrong_edits_are_refused_in_one_line_and_change_nothing(ui: UIModel, edit) -> None:
    before = state(ui)
    with pytest.raises(UserError) as error:
        ui.apply(edit)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert state(ui) == before and not ui.can_undo


def test_wrong_maps_are_refused(ui: UIModel) -> None:
    label, inst = scene()
    for wrong in (
        (label.astype(float), inst),
        (label + 20, inst),
        (label, inst[:-1]),
        (label, None),
        (label, inst + 60000),
        (label[:0], inst[:0]),
    ):
        with pytest.raises(UserError):
            ui.open(*wrong)


def test_models_without_features_have_no_styles(tmp_path: Path) -> None:
    ui = editor(tmp_path, instance_feat=False)
    ui.open(*scene())
    assert not ui.has_features and ui.features == {} and ui.picture().shape == (24, 40, 3)
    with pytest.raises(UserError, match="no styles"):
        ui.set_style(26000, [0, 0, 0])


def test_models_of_rgb_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--label_nc 0"):
        editor(tmp_path, label_nc=0, instance_feat=False)


def test_ignored_pixels_stay_out_of_the_input(tmp_path: Path) -> None:
    ui = editor(tmp_path, ignore_label=255)
    label, inst = scene()
    label[20:] = 255  # below the cars
    ui.open(label, inst)
    assert seen(ui)[0, :35, 20:].sum() == 0
    ui.delete(26001)
    assert (ui.label[14:20] != 255).all()
    assert torch.equal(seen(ui), rebuilt(ui))


def test_other_label_sets_number_objects_as_they_like(tmp_path: Path) -> None:
    """Ids 1, 2, ... whatever the class: a painted class must not join an object of another."""
    ui = editor(tmp_path, label_nc=5)
    label = np.zeros((16, 16), np.uint8)
    label[8:] = 2
    inst = np.ones((16, 16), np.int32)
    inst[8:] = 3
    ui.open(label, inst)
    assert ui.paint([(2, 2)], 3, 1)
    assert ui.inst[2, 2] not in (1, 3)
    assert ui.delete(int(ui.inst[2, 2])) and ui.inst[2, 2] == 1
    assert ui.paint([(12, 2)], 0, 1) and ui.inst[12, 2] == 1000  # below 1000 ids are classes


def test_without_instances_a_scene_may_have_any_number_of_pieces(tmp_path: Path) -> None:
    ui = editor(tmp_path, instance_feat=False, no_instance=True)
    label = np.add.outer(np.arange(256), np.arange(256)) % 2 * SKY  # 65536 pieces of one pixel
    ui.open(label)
    for number in (65537, 65538):
        assert ui.paint([(0, 2 * number % 256)], ROAD, 0) and ui.inst.max() == number
    assert ui.undo() and ui.inst.max() == 65537


def test_scenes_share_networks_but_nothing_else(ui: UIModel) -> None:
    """Threads that edit separate scenes get the images of their own edits."""
    alone, found = [], {}
    for number in range(4):
        one = ui.another()
        one.open(*scene(), "a_scene")
        one.paint([(4, 4 + 8 * number)], CAR, 3)
        alone.append(one.picture())

    def work(number: int) -> None:
        one = ui.another()
        one.open(*scene(), "a_scene")
        for _ in range(5):
            one.paint([(4, 4 + 8 * number)], CAR, 3)
            found.setdefault(number, []).append(one.picture())
            one.undo()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert len(found[number]) == 5
        assert all(np.array_equal(image, alone[number]) for image in found[number])


@pytest.mark.thorough
def test_memory_is_flat_after_500_edits(ui: UIModel) -> None:
    """The history keeps compressed boxes: a few hundred bytes per edit, never whole maps."""
    rng = np.random.default_rng(3)

    def edit(times: int) -> None:
        for _ in range(times):
            point = (float(rng.integers(24)), float(rng.integers(40)))
            ui.paint([point], int(rng.integers(35)), 2)
            ui.picture()

    edit(50)
    tracemalloc.start()
    edit(50)
    start = tracemalloc.get_traced_memory()[0]
    edit(500)
    grown = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    assert grown < 500 * 4096


def test_history_is_bounded(ui: UIModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.scene.HISTORY_BYTES", 400)
    for column in range(0, 40, 2):
        ui.paint([(4, column)], CAR, 2)
    assert sum(len(change.maps) for change in ui._done) <= 400
    assert len(ui.edits) == 20  # the list is complete all the same
    while ui.undo():
        assert torch.equal(seen(ui), rebuilt(ui))
    assert 0 < len(ui.edits) < 20


def test_stroke_by_distance_to_its_line() -> None:
    """Pixels exactly two pixels away from the level part belong to it."""
    points, radius, shape = [(3.0, 2.0), (3.0, 9.0), (9.0, 20.0), (1.0, 25.0)], 2.0, (12, 24)
    found = stroke(points, radius, shape)
    for y in range(shape[0]):
        for x in range(shape[1]):
            away = min(distance((y, x), a, b) for a, b in pairwise(points))
            assert found[y, x] == (away <= radius), (y, x)


def distance(p, a, b) -> float:
    """From a point to a segment: to the nearest place on it."""
    p, a, b = map(np.array, (p, a, b))
    along = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return np.linalg.norm(p - a - along * (b - a))


def test_outline_follows_pixel_edges() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1, 1:3] = True
    assert sorted(outline(mask)) == [(1, 1, 1, 2), (1, 1, 3, 1), (1, 2, 3, 2), (3, 1, 3, 2)]


def test_a_preview_has_its_object_in_the_middle() -> None:
    mask = np.zeros((100, 200), bool)
    mask[40:51, 80:100] = True
    assert surroundings(mask) == (slice(33, 58), slice(65, 115))

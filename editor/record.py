"""Edit lists: a scene as it was opened and every edit since, as JSON; and replaying them."""

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from models.ui_model import UIModel
from util.errors import UserError, first_line
from util.files import make_folder, write_bytes
from util.pages.colours import class_name
from util.progress import log

FORMAT = "pix2pixHD edit list 1"
MAX_BYTES = 256 << 20  # of an edit list's file
MAX_PIXELS = 64 << 20
NOT_A_LIST = "not an edit list; give a SCENE_edits.json that the editor has saved"


def edit_list(ui: UIModel) -> dict:
    """All that replay needs besides the network: the original maps and features, and the edits."""
    label, inst, features = ui.as_opened
    return {
        "format": FORMAT,
        "scene": ui.name,
        **_model(ui),
        "label": packed(label),
        "inst": packed(inst) if ui.has_instances else None,
        "features": {str(i): vector.tolist() for i, vector in sorted(features.items())},
        "edits": ui.edits,
    }


def _model(ui: UIModel) -> dict[str, int]:
    """What an edit list and the model that renders it must have in common."""
    opt = ui.networks.opt
    return {
        "label_nc": opt.label_nc,
        "feat_num": opt.feat_num if ui.has_features else 0,
        "no_instance": opt.no_instance,
        "label_feat": opt.label_feat,
    }


def replay(ui: UIModel, record: dict) -> None:
    """Open an edit list's scene and apply its edits. Raises UserError if it does not fit."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{NOT_A_LIST} (expected the format {FORMAT!r})")
    for key, value in _model(ui).items():
        if record.get(key, value) != value:  # older lists do not have all of them
            raise UserError(f"made with {key} {record[key]!r:.40}, but this model has {value}")
    features, edits = record.get("features"), record.get("edits")
    if not isinstance(features, dict) or not isinstance(edits, list):
        raise UserError("expected features by region and a list of edits")
    inst = unpacked(record.get("inst"), "inst") if ui.has_instances else None
    scene = str(record.get("scene")).encode(errors="replace").decode()
    ui.open(unpacked(record.get("label"), "label"), inst, scene, features)
    for number, edit in enumerate(edits, start=1):
        try:
            ui.apply(edit)
        except UserError as error:
            tool = edit.get("tool") if isinstance(edit, dict) else None
            raise UserError(f"edit {number} ({tool!r:.40}): {error}") from error
    if bare := ui.without_style():
        names = ", ".join(class_name(label, ui.networks.opt.label_nc) for label in bare)
        log(f"warning: the edit list has no styles for {names}; their features are zero")


def replay_file(ui: UIModel, path: Path, out: Path) -> list[Path]:
    """Render an edit list's file into a folder: the photograph, both maps, the label map in
    colours. Returns the files."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MB: {NOT_A_LIST}")
        record = json.loads(path.read_bytes())  # in UTF-8, 16 or 32
    except OSError as error:
        raise UserError(f"--replay {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a wrong encoding is a ValueError too
        raise UserError(f"{path}: {NOT_A_LIST} ({first_line(error)})") from error
    try:
        replay(ui, record)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    make_folder(out, "--out")
    files = []
    for kind, make in images(ui).items():
        ending, _, content = encoded(make())
        files.append(out / f"{kind}.{ending}")
        write_bytes(files[-1], content)
    return files


def images(ui: UIModel) -> dict[str, Callable[[], np.ndarray]]:
    """The images that can be saved, with functions that make them."""
    found = {"photograph": ui.picture, "label": lambda: ui.label}
    if ui.has_instances:
        found["inst"] = lambda: ui.inst
    return found | {"label_colours": ui.label_image}


def download(ui: UIModel, kind: str) -> tuple[str, str, bytes]:
    """A file's name, media type and bytes. kind: "photograph", "label", "inst" or "edits"."""
    if kind == "edits":
        return f"{ui.name}_edits.json", "application/json", json.dumps(edit_list(ui)).encode()
    ending, media, content = encoded(images(ui)[kind]())
    return f"{ui.name}_{kind}.{ending}", media, content


def encoded(array: np.ndarray) -> tuple[str, str, bytes]:
    """An image (H, W, 3) uint8 or a map (H, W) as a file: its extension, media type and bytes. PNG,
    or npy for a map with numbers that a PNG cannot hold (--ignore_label -1)."""
    buffer = io.BytesIO()
    low, high = array.min(), array.max()
    if low < 0 or high > 65535:
        np.save(buffer, array)
        return "npy", "application/octet-stream", buffer.getvalue()
    Image.fromarray(array.astype(np.uint8 if high < 256 else np.uint16)).save(buffer, "PNG")
    return "png", "image/png", buffer.getvalue()


def packed(array: np.ndarray) -> dict:
    """A map (H, W) for JSON, without loss."""
    data = zlib.compress(array.astype("<i4").tobytes(), 9)
    return {"shape": list(array.shape), "int32": base64.b64encode(data).decode()}


def unpacked(content: object, what: str) -> np.ndarray:
    """The inverse of packed. Raises UserError; never unpacks more than the stated size."""
    try:
        height, width = (int(side) for side in content["shape"])
        if min(height, width) < 1 or height * width > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels")
        expected = 4 * height * width
        data = zlib.decompressobj().decompress(
            base64.b64decode(content["int32"], validate=True), expected + 1
        )
        if len(data) != expected:
            raise ValueError(f"not {height}x{width} values")
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
        raise UserError(f"{what}: not a map of an edit list ({error})") from error
    return np.frombuffer(data, "<i4").reshape(height, width)

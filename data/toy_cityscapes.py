"""Toy street scenes (see data/toy), laid out on disk exactly like the Cityscapes download.

python -m data.toy_cityscapes --out datasets/toy_raw --train 200 --val 20 --size 256x128
python prepare_cityscapes.py --raw datasets/toy_raw --out datasets/toy
"""

import json
import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from data.toy.scene import Scene, draw_scene
from util.errors import UserError, brief, run
from util.files import replacing, write_text
from util.parser import Parser, integer, size
from util.progress import bar, log

SMALLEST, LARGEST = 32, 8192  # pixels: a person is wider than one, a drawing fits into memory
CITIES = {"train": "toytown", "val": "toyville"}


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """A separate generator for each scene, whatever the number of scenes before it."""
    return np.random.default_rng([seed, list(CITIES).index(split), index])


def write_dataset(
    out: Path, train: int = 200, val: int = 20, size: tuple[int, int] = (256, 128), seed: int = 0
) -> None:
    """Write scenes of size (width, height) below `out`.

    Besides the images: train.list and val.list (photograph and label map, one scene per line) and
    toy_styles.json, {stem: {instance id: palette index}}. Scenes of an earlier call that this one
    does not draw again are removed. Raises UserError for what cannot be drawn, and for a folder
    that holds real images.
    """
    _check(out, train, val, size)
    out.mkdir(parents=True, exist_ok=True)
    # while a set is drawn its lists are empty: prepare_cityscapes.py then refuses it, and the
    # quickstart, which checks the last one written, draws it again
    for split in reversed(CITIES):
        write_text(out / f"{split}.list", "")
    (out / "toy_styles.json").unlink(missing_ok=True)
    lists, styles = dict.fromkeys(CITIES, ""), {}
    for split, count in (("train", train), ("val", val)):
        for path in out.glob(f"*/{split}/{CITIES[split]}/{CITIES[split]}_*_000019_*.png"):
            if int(path.name.split("_")[1]) >= count:  # of an earlier, larger set
                path.unlink()
        for index in bar(range(count), desc=f"draw {split}"):
            scene = draw_scene(scene_rng(seed, split, index), *size)
            stem = f"{CITIES[split]}_{index:06d}_000019"
            lists[split] += " ".join(_write_scene(out, split, stem, scene)) + "\n"
            styles[stem] = {str(id): style for id, style in scene.styles.items()}
    write_text(out / "toy_styles.json", json.dumps(styles, indent=1) + "\n")
    for split, text in lists.items():
        write_text(out / f"{split}.list", text)


def _check(out: Path, train: int, val: int, size: tuple[int, int]) -> None:
    if not SMALLEST <= min(size) <= max(size) <= LARGEST:
        raise UserError(
            f"--size {size[0]}x{size[1]}: width and height must be {SMALLEST} to {LARGEST} pixels"
        )
    if train + val == 0:
        raise UserError("--train 0 --val 0 asks for no scenes: give at least one of them")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    cities = {path.name for path in out.glob("leftImg8bit/*/*")} - set(CITIES.values())
    if cities:
        raise UserError(
            f"--out {out} holds other images ({brief(sorted(cities))}): give a separate folder"
        )


def _write_scene(out: Path, split: str, stem: str, scene: Scene) -> tuple[str, str]:
    """Write the three images; return photograph and label map relative to `out`."""
    photo = f"leftImg8bit/{split}/{CITIES[split]}/{stem}_leftImg8bit.png"
    label = f"gtFine/{split}/{CITIES[split]}/{stem}_gtFine_labelIds.png"
    instance = label.replace("_labelIds", "_instanceIds")
    for name, pixels in (photo, scene.photo), (label, scene.label), (instance, scene.instance):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out / name) as temporary:
            Image.fromarray(pixels).save(temporary, "PNG")  # uint16 becomes a 16-bit PNG
    return photo, label


def main() -> None:
    """The command line."""
    parser = Parser(description="Draw toy street scenes.")
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write to")
    add("--train", type=integer(0), metavar="N", default=200, help="scenes to train on")
    add("--val", type=integer(0), metavar="N", default=20, help="scenes to test on")
    add("--size", type=size, metavar=size.metavar, default="256x128", help="in pixels")
    add("--seed", type=integer(0), metavar="N", default=0, help="random seed of the scenes")
    args = parser.parse_args()
    try:
        write_dataset(args.out, args.train, args.val, args.size, args.seed)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror or error}") from error
    width, height = args.size
    log(f"{args.train} + {args.val} scenes of {width}x{height} in {args.out}")
    prepared = str(args.out).removesuffix("_raw")
    if prepared in ("", str(args.out)):
        prepared = args.out / "prepared"
    command = ["python", "prepare_cityscapes.py", "--raw", str(args.out), "--out", str(prepared)]
    if not (args.train and args.val):
        command += ["--splits", "train" if args.train else "val"]
    log(f"next: {shlex.join(command)}")


if __name__ == "__main__":
    run(main)

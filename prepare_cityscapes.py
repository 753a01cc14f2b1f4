"""Cityscapes as downloaded -> train_img/ train_label/ train_inst/ and the same for test_.

    python prepare_cityscapes.py --raw ~/Downloads/cityscapes
    python prepare_cityscapes.py --raw ~/Downloads/cityscapes --out datasets/city_512 --size 512

RAW holds what leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack to: leftImg8bit/ and
gtFine/. The validation split becomes the test set. If RAW/train.list (val.list) exists, it says
which scenes to take: each line holds a photograph and a label map, separated by a space, relative
to RAW.

It can be interrupted and run again: every file is written under a temporary name and then renamed.
"""

import argparse
import errno
import os
import shlex
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from data.files import all_below, image_size, open_image
from util.errors import UserError, run
from util.files import lock_folder
from util.parser import Parser, integer
from util.progress import bar, log

PHASES = {"train": "train", "val": "test"}  # split of the download -> name in the data set
KINDS = {  # folder's ending -> (tree of the download, what follows the stem in its file names)
    "img": ("leftImg8bit", "_leftImg8bit.png"),
    "label": ("gtFine", "_gtFine_labelIds.png"),
    "inst": ("gtFine", "_gtFine_instanceIds.png"),
}
MAX_WIDTH = 16384  # pixels


@dataclass(frozen=True)
class Job:
    """One file to make. kind: img, label or inst."""

    kind: str
    source: Path
    target: Path


def main() -> None:
    """The command line."""
    args = parse_args()
    splits = {split: find_jobs(args.raw, args.out, split) for split in dict.fromkeys(args.splits)}
    check([job for jobs in splits.values() for job in jobs])
    # held while the variable lives: two commands would remove each other's unfinished files
    _lock = lock_folder(args.out, "prepare_cityscapes.py")
    for split, jobs in splits.items():
        report(args.out, split, jobs, make_all(jobs, args, split))
    first = next(iter(splits.values()))[0]
    log(f"next: {next_command(args.out, first.target)}")


def parse_args() -> argparse.Namespace:
    """Read and check the flags."""
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--raw", type=Path, required=True, help="folder with leftImg8bit/ and gtFine/")
    add("--out", type=Path, default=Path("./datasets/cityscapes"), help="folder to write to")
    splits = list(PHASES)
    add("--splits", nargs="+", choices=splits, default=splits, help="which splits to convert")
    add("--link", action="store_true", help="hard links instead of copies")
    width = integer(1, MAX_WIDTH)
    add("--size", type=width, metavar="W", help="scale to this width, the height in proportion")
    processes = min(os.cpu_count() or 1, 8)
    add("--workers", type=integer(1), metavar="N", default=processes, help="parallel processes")
    args = parser.parse_args()
    if not args.raw.is_dir():
        raise UserError(
            f"--raw {args.raw} is not a folder: give the one that holds leftImg8bit and gtFine"
        )
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is a file: give a folder")
    if args.size is not None and args.link:
        raise UserError("--link with --size: a scaled file cannot be a link; leave one of them out")
    return args


def find_jobs(raw: Path, out: Path, split: str) -> list[Job]:
    """All files of a split, three per scene, whether or not their sources exist.

    In order of kind: a kill leaves scenes that lack a map, which training refuses, rather than a
    data set that looks complete but is smaller or has images of two sizes.
    """
    listing = raw / f"{split}.list"
    scenes = read_list(raw, listing) if listing.is_file() else walk(raw, split)
    if not scenes:
        where, remedy = raw / "leftImg8bit" / split, f"unpack both Cityscapes zips into {raw}"
        if listing.is_file():
            where, remedy = listing, "complete it (for a toy set, run data.toy_cityscapes again)"
        raise UserError(f"{where}: no images (for --splits {split}); {remedy}")
    phase = PHASES[split]
    return [
        Job(kind, source, out / f"{phase}_{kind}" / source.name)
        for kind, sources in zip(KINDS, zip(*scenes))
        for source in sources
    ]


def read_list(raw: Path, listing: Path) -> list[tuple[Path, Path, Path]]:
    """(photograph, label map, instance map) of each line.

    Of the label map only the name up to its last underscore counts: common lists name other maps of
    the scene (labelTrainIds).
    """
    scenes = []
    text = listing.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or "_" not in Path(fields[-1]).name:
            raise UserError(
                f"{listing} line {number}: {line!r} is not an image path, a space, a label path"
            )
        for field in fields:
            if Path(field).anchor or ".." in Path(field).parts:
                raise UserError(
                    f"{listing} line {number}: {field} leads out of --raw; paths are relative to it"
                )
        stem = fields[1].rpartition("_")[0]
        names = fields[0], f"{stem}_labelIds.png", f"{stem}_instanceIds.png"
        scenes.append(tuple(raw / name for name in names))
    return list(dict.fromkeys(scenes))


def walk(raw: Path, split: str) -> list[tuple[Path, Path, Path]]:
    """The scenes that have any file in the two trees, following links."""
    stems = {
        path.relative_to(raw / tree / split).as_posix().removesuffix(ending)
        for tree, ending in KINDS.values()
        for path in all_below(raw / tree / split)
        if path.name.endswith(ending)
    }
    return [
        tuple(raw / tree / split / f"{stem}{ending}" for tree, ending in KINDS.values())
        for stem in sorted(stems)
    ]


def check(jobs: list[Job]) -> None:
    """Refuse, before anything is written, missing files (all listed) and two for one target."""
    missing = [job.source for job in jobs if not job.source.is_file()]
    for path in missing:
        print(f"missing: {path}", file=sys.stderr)
    if missing:
        raise UserError(f"{len(missing)} files are missing, see above; nothing was written")
    sources: dict[Path, Path] = {}
    for job in jobs:
        other = sources.setdefault(job.target, job.source)
        if other != job.source:
            raise UserError(
                f"{other} and {job.source} would both become {job.target}: rename one of them"
            )


def make_all(jobs: list[Job], args: argparse.Namespace, split: str) -> int:
    """Make the files that are not complete yet; return how many."""
    work = partial(make, link=args.link, width=args.size)
    # Threads suffice: copying waits for the disk, and Pillow releases the interpreter lock
    with ThreadPoolExecutor(args.workers) as pool:
        return sum(bar(pool.map(work, jobs), desc=split, total=len(jobs), unit="file"))


def make(job: Job, link: bool, width: int | None) -> bool:
    """Make one file, unless it is complete; return whether it was made."""
    try:
        if is_complete(job, width):
            return False
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write(job, link, width)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise UserError(
                "--link: --out must be on the same file system as --raw; copy without --link"
            ) from error
        reason = error.strerror or error
        raise UserError(f"cannot make {job.target} from {job.source}: {reason}") from error
    return True


def is_complete(job: Job, width: int | None) -> bool:
    """Whether the target is what would be made now: by the source's time, and its (scaled) size.

    A target is never half written, so its content need not be read.
    """
    if not job.target.is_file():
        return False
    source, target = job.source.stat(), job.target.stat()
    if source.st_mtime_ns != target.st_mtime_ns:
        return False
    if width is None:
        return source.st_size == target.st_size
    return image_size(job.target) == scaled_size(image_size(job.source), width)


def write(job: Job, link: bool, width: int | None) -> None:
    """Write under a temporary name in the same folder, then rename."""
    temporary = job.target.with_name(f".{job.target.name}.tmp")
    temporary.unlink(missing_ok=True)  # left by a kill
    try:
        if link:
            os.link(job.source.resolve(), temporary)
        elif width is None:
            shutil.copy2(job.source, temporary)
        else:
            scale(job, width).save(temporary, format="PNG")
            time = job.source.stat()
            os.utime(temporary, ns=(time.st_atime_ns, time.st_mtime_ns))
        os.replace(temporary, job.target)
    finally:
        temporary.unlink(missing_ok=True)


def scale(job: Job, width: int) -> Image.Image:
    """The image at this width: bicubic for a photograph, the nearest pixel for maps."""
    image = open_image(job.source)  # which refuses damage that would be hidden in the new file
    size = scaled_size(image.size, width)
    if job.kind == "img":
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    if image.mode == "I;16":  # for which Pillow breaks ties differently
        return image.convert("I").resize(size, Image.Resampling.NEAREST).convert("I;16")
    return image.resize(size, Image.Resampling.NEAREST)


def scaled_size(size: tuple[int, int], width: int) -> tuple[int, int]:
    """(width, height) with the proportions of size."""
    return width, max(round(size[1] * width / size[0]), 1)


def report(out: Path, split: str, jobs: list[Job], made: int) -> None:
    """Report what was made, and what else is in the folders: training would use it as well."""
    log(
        f"{split}: {len(jobs) // len(KINDS)} scenes in {out}/{PHASES[split]}_{{{','.join(KINDS)}}}"
        f" ({made} files written, {len(jobs) - made} there already)"
    )
    targets = {job.target for job in jobs}
    folders = sorted({target.parent for target in targets})
    others = [path for folder in folders for path in folder.glob("[!.]*") if path not in targets]
    if others:
        log(f"note: {len(others)} other files are there too, for example {others[0]}")


def next_command(out: Path, image: Path) -> str:
    """The training command for this data set, whose images are as large as this one."""
    command = ["python", "train.py", "--name", "label2city", "--dataroot", str(out)]
    width = image_size(image)[0]
    return shlex.join(command + (["--loadSize", str(width)] if width < 1024 else []))


if __name__ == "__main__":
    run(main)

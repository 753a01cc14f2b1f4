"""Toy street scenes (see data/toy), laid out on disk exactly as the Cityscapes download.

python -m data.toy_cityscapes --out datasets/toy_raw --train 200 --val 20 --size 256x128
python prepare_cityscapes.py --raw datasets/toy_raw --out datasets/toy
"""

import argparse
import re
from pathlib import Path
from typing import NoReturn

from data.toy.dataset import write_dataset
from util.errors import UserError, run


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of a text like 256x128."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise UserError(f"--size {text} is not a size: write WIDTHxHEIGHT, for example 256x128")
    return int(match[1]), int(match[2])


def fail(message: str) -> NoReturn:
    raise UserError(message)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data.toy_cityscapes", description="Draw toy street scenes."
    )
    parser.error = fail  # one line, without the usage
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--train", type=int, default=200, help="scenes to train on")
    parser.add_argument("--val", type=int, default=20, help="scenes to test on")
    parser.add_argument("--size", default="256x128", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes")
    args = parser.parse_args()
    try:
        write_dataset(args.out, args.train, args.val, parse_size(args.size), args.seed)
    except OSError as error:
        raise UserError(f"--out {args.out}: {error}") from error
    print(f"{args.train} + {args.val} scenes of {args.size} in {args.out}")
    print(f"next: python prepare_cityscapes.py --raw {args.out} --out ./datasets/toy")


if __name__ == "__main__":
    run(main)

"""One command that measures a machine with a GPU: the other benchmarks, most important first.

    python -m benchmarks.gpu --minutes 20
    python -m benchmarks.gpu --only training

Writes machine.json (everything) and table.md (ready for docs/performance.md) into --out again after
each command, so that no result is lost. A command that fails or takes too long is noted, and the
next one starts. On a machine without a GPU, sizes and networks are tiny.
"""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.measure import machine, shown
from util.errors import run
from util.files import make_folder, write_text
from util.parser import Parser, integer, number
from util.progress import log

ROOT = Path(__file__).parents[1]
P512 = "--width 1024 --height 512 --ngf 64"
P1024 = "--width 2048 --height 1024 --ngf 32 --netG local --num_D 3"
STEP, INFER = "train_step --repeat 3", "inference --repeat 3"
PARTS: dict[str, list[str]] = {  # part -> commands, both most important first
    "correctness": ["correctness"],
    "training": [
        *(f"{STEP} {P512} --amp bf16 {more}" for more in ("", "--compile", "--compile --batch 4")),
        f"{STEP} {P512}",
        f"{STEP} {P1024} --amp bf16",
        f"{STEP} {P1024} --amp bf16 --checkpoint_activations",
        f"{STEP} {P512} --tf32",
        f"{STEP} {P512} --amp fp16 --compile",
    ],
    "profile": [
        f"profile_step {P512} --amp bf16",
        f"profile_step {P512} --amp bf16 --compile",
    ],
    "inference": [
        f"{INFER} --amp bf16 --compile",
        f"{INFER} --amp bf16",
        f"{INFER} --amp bf16 --cuda_graphs",
        f"{INFER} {P512} --netG global --amp bf16 --compile --batch 4",
        f"{INFER} --amp fp16 --compile --batch 4",
    ],
    "memory": ["memory --amp bf16", "memory --limit 12 --amp bf16 --stage 1024p"],
    "more training": [
        *(f"{STEP} {P512} --amp bf16 --batch {batch}" for batch in (2, 4, 8)),
        *(f"{STEP} {P512} --amp bf16 --compile --batch {batch}" for batch in (2, 8)),
        f"{STEP} {P512} --amp fp16",
        f"{STEP} {P512} --amp bf16 --checkpoint_activations",
        f"{STEP} {P512} --amp bf16 --contiguous",
        f"{STEP} {P1024} --amp bf16 --compile",
        f"{STEP} {P1024} --tf32",
        f"{STEP} {P1024}",
    ],
    "pooling": ["instance_pooling"],
    "loading": ["loader --workers 4", "loader"],
}
TINY = {  # replacements on a CPU
    P512: "--width 64 --height 32 --ngf 4",
    P1024: "--width 64 --height 64 --ngf 4",
    "memory": "memory --stage 512p",
    "inference": "inference --width 128 --height 64 --ngf 4",
    "instance_pooling": "instance_pooling --width 64 --height 32",
    "correctness": "correctness --width 32 --height 32",
    "loader": "loader --scenes 2 --width 64 --height 32 --loadSize 32",
    "--repeat 3": "--repeat 1",
    "--workers 4": "--workers 1",
    **dict.fromkeys(["--amp bf16", "--amp fp16", "--compile", "--cuda_graphs"], ""),
    **dict.fromkeys(["--limit 12", "--stage 1024p"], ""),
}
NETWORKS = "--n_blocks_global 1 --n_downsample_global 1 --ndf 4"


def shrunk(command: str) -> str:
    """A command at a size that takes a CPU a second or two."""
    for part, small in TINY.items():
        command = command.replace(part, small)
    if command.startswith("train_step"):
        return f"{command} --no_vgg --no_feat {NETWORKS}"
    if command.startswith("profile_step"):
        return f"{command} --no_vgg_loss --steps 2 {NETWORKS}"
    return command


def measure(command: str, limit: float) -> dict:
    """Run a benchmark for at most limit seconds; returns its JSON, or why there is none."""
    start = time.monotonic()
    row: dict = {"command": f"python -m benchmarks.{command}"}
    try:
        argv = [sys.executable, "-m", *f"benchmarks.{command}".split()]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=limit)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            row["failed"] = lines[-1] if lines else f"exit status {done.returncode}"
        else:
            row["result"] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        row["failed"] = f"not done after {limit:.0f} s"
    except (ValueError, IndexError) as error:
        row["failed"] = f"printed no JSON ({error})"
    return row | {"seconds": round(time.monotonic() - start, 1)}


def facts(device: torch.device) -> dict[str, object]:
    """Where it was measured: device, driver, versions, date."""
    found = {**machine(device), "python": platform.python_version(), "cuda": torch.version.cuda}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["memory GiB"] = round(properties.total_memory / 2**30, 1)
        found["cudnn"] = torch.backends.cudnn.version()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        except OSError:
            found["driver"] = "unknown"
    return found


def markdown(found: dict, parts: dict[str, list[dict]]) -> str:
    """The tables of all parts."""
    lines = [", ".join(f"{name} {value}" for name, value in found.items())]
    for part, results in parts.items():
        lines += ["", f"### {part.capitalize()}"]
        for row in results:
            lines += ["", f"`{row['command']}` ({row['seconds']:.0f} s)", ""]
            if "failed" in row:
                lines.append(f"failed: {row['failed']}")
                continue
            result = row["result"]
            heads = list(result["rows"][0])
            lines += [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
            for cells in result["rows"]:
                texts = (shown(cells[head]).replace("|", "/") for head in heads)
                lines.append(f"| {' | '.join(texts)} |")
            known = {"benchmark", "rows", "device", "threads", "torch", "date", "flags"}
            more = [f"{name}: {shown(v)}" for name, v in result.items() if name not in known]
            lines += ["", ", ".join(more)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = Parser(description="Measure this machine.")
    parser.add_argument("--minutes", type=number(0.01, 1e4), default=20.0, help="approximate limit")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--limit", type=integer(1), default=300, help="seconds for one command")
    given = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if not has_gpu:
        log("no GPU was found: all parts run on the CPU, at toy sizes")
    make_folder(given.out, "--out")
    end = time.monotonic() + 60 * given.minutes
    found, parts = facts(torch.device("cuda" if has_gpu else "cpu")), {}
    for part in given.only or PARTS:
        parts[part] = []
        for command in PARTS[part]:
            left = end - time.monotonic()
            if left > 0:
                row = measure(command if has_gpu else shrunk(command), min(left, given.limit))
                log(f"{row['command']}: {row.get('failed', 'done')}, {row['seconds']} s")
            else:
                row = {"command": command, "failed": "no time left", "seconds": 0}
            parts[part].append(row)
            write_text(given.out / "machine.json", json.dumps(found | {"parts": parts}, indent=1))
            write_text(given.out / "table.md", markdown(found, parts))
    log(f"{given.out / 'machine.json'} and {given.out / 'table.md'}")


if __name__ == "__main__":
    run(main)

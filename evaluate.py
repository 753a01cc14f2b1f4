"""Measure the images of test.py against the real photographs and label maps.

    python evaluate.py --name label2city_512p --segmenter hf:NAME_OR_DIR
    python evaluate.py --name label2city_512p --which_epoch 20,40,best
    python evaluate.py --name toy_labels --segmenter torchscript:checkpoints/toy_segmenter.pt
    python evaluate.py --images datasets/toy/test_img --dataroot datasets/toy    # real against real

PSNR, SSIM, LPIPS, FID and KID compare with the photographs. Grid energy, sharpness and the
variance of colours inside things are shown next to those of the photographs (the oracle). Pixel
accuracy and mean IoU compare what a segmentation network finds in an image with the label map that
it was generated from (paper, Table 1). Results: metrics.json and index.html in
results/NAME/PHASE_EPOCH/evaluation; of several runs or epochs also one table.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from data.create import evenly_spaced
from data.values import image_values
from evaluation import report
from evaluation.measures import Measures, measure_pair
from evaluation.scenes import SceneFiles, find_scenes
from evaluation.segmentation import create_evaluator
from options.evaluate_options import EvaluateOptions
from util.errors import run
from util.files import make_folder, write_text
from util.pages.plots import require_matplotlib
from util.progress import bar, log
from util.run.checkpoints import run_dir, weights_file
from util.setup import first_device, set_up_torch


def evaluate(opt: argparse.Namespace, scenes: list[SceneFiles]) -> dict:
    """Measure the scenes, write metrics.json and the page, and return what metrics.json holds."""
    device = first_device(opt)
    set_up_torch(deterministic=False, tf32=False)
    warn_if_older([scene.generated for scene in scenes], opt)
    evaluator = create_evaluator(opt, device) if opt.segmenter else None
    if evaluator:
        require_matplotlib()  # draws the confusion matrices after measuring
    make_folder(opt.out / "images", "--out")
    rgb = image_values(opt, "output").is_rgb8
    measures = Measures(len(scenes), opt.weights_dir, device, rgb=rgb)

    rows, sizes, resized = [], Counter(), 0
    for scene in bar(scenes, desc="images", unit="image"):
        generated, real, label, inst = scene.read(opt)
        sizes[generated.shape[1::-1]] += 1
        resized += scene.is_resized(generated, opt)
        measures.add(generated, real)
        row = {"name": scene.name, **measure_pair(generated, real, inst)}
        rows.append(row | (evaluator.add(generated, real, label) if evaluator else {}))

    metrics = {
        "protocol": report.protocol(opt, sizes, resized, evaluator),
        **report.summary(rows, measures, evaluator),
        "pictures": rows,
    }
    report.write_json(metrics, opt.out / "metrics.json")
    page = report.write_page(opt, metrics, scenes, evaluator)
    report.print_table(metrics, f"{opt.out / 'metrics.json'} and {page}")
    return metrics


def warn_if_older(images: list[Path], opt: argparse.Namespace) -> None:
    """Warn if a run's images are older than its weights."""
    weights = weights_file(run_dir(opt), opt.which_epoch, "G")
    if not (weights.is_file() and opt.images.is_relative_to(Path(opt.results_dir) / opt.name)):
        return
    if older := [path for path in images if path.stat().st_mtime < weights.stat().st_mtime]:
        log(
            f"warning: {len(older)} images, e.g. {older[0]}, are older than {weights}: if training "
            "has gone on, generate them again with test.py"
        )


def main() -> None:
    runs = EvaluateOptions().parse_runs()
    # of all runs first, so that missing images are reported before any are measured
    scenes = [evenly_spaced(find_scenes(opt), opt.val_max) for opt in runs]
    results = {f"{o.name} {o.which_epoch}": evaluate(o, found) for o, found in zip(runs, scenes)}
    if len(runs) > 1:
        table = report.comparison(results)
        widths = [max(map(len, column)) for column in zip(*table)]
        for row in table:
            log("  ".join(map(str.rjust, row, widths)))
        path = Path(runs[0].results_dir) / "comparison.json"
        write_text(path, json.dumps([dict(zip(table[0], row)) for row in table[1:]], indent=1))
        log(str(path))


if __name__ == "__main__":
    run(main)

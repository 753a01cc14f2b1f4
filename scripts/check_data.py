"""Read a whole data set once and report everything that training would fail on.

    python -m data.check --dataroot datasets/cityscapes

takes train.py's flags, so that it checks what that run would need. Exit status: 0, no problems; 1,
there are problems; 2, the command itself is wrong.
"""

from data.check import check, summary
from data.create import create_dataset, resolve_role, used_roles
from data.files import MAX_CLASSES
from evaluation.validation import validation_options
from models.build import min_training_side
from options.train_options import TrainOptions
from util.errors import UserError, one_line, run
from util.progress import log


class CheckOptions(TrainOptions):
    description = "Report all problems of a data set for a training with these flags."


def main() -> int:
    opt = CheckOptions().parse()
    problems = []
    for role in used_roles(opt):
        try:
            resolve_role(opt, role)
        except UserError as error:
            problems.append(str(error))
    if opt.val_phase not in (None, "none"):
        own = validation_options(opt)
        own.label_nc = MAX_CLASSES if opt.label_nc == "auto" else opt.label_nc
        try:
            create_dataset(own, training=False)
        except UserError as error:
            problems.append(f"--val_phase: {error}")
    report = check(opt, min_training_side(opt))
    report.problems += [p for p in problems if not any(one in p for one in report.problems)]
    lines = [f"problem: {problem}" for problem in report.problems]
    lines += [f"note: {note}" for note in report.notes]
    lines += summary(report, opt)
    lines.append(f"{len(report.problems)} problems" if report.problems else "no problems found")
    for line in lines:
        log(one_line(line))
    return 1 if report.problems else 0


if __name__ == "__main__":
    run(main)

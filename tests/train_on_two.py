"""train.py on two CPU processes by the launcher that --gpu_ids 0,1 uses: python THIS FLAGS..."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from util.run.stop import exit_on_signals  # isort: skip

exit_on_signals()

import train  # noqa: E402
from util import distributed  # noqa: E402
from util.errors import run  # noqa: E402

if __name__ == "__main__":
    run(train.main if "RANK" in os.environ else lambda: distributed.start_processes(2))

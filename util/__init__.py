"""What the commands share and what knows no model: runs on disk, pages, processes, errors."""

import os

# For GNU OpenMP, which reads it when torch is imported: how long a thread that has nothing to do
# holds its core before it sleeps. The default, about a millisecond, is taken from whoever else
# could work: another program, the training that runs beside this one, the threads that read its
# data. docs/performance.md has figures.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

"""Shared by all commands, independent of the models: runs on disk, pages, processes, errors."""

import os

# How long an idle GNU OpenMP thread spins on its core before it sleeps; read when torch is
# imported. The default, about a millisecond, keeps the core from whatever else could run: another
# program, a second training, the threads that read data. docs/performance.md has figures.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

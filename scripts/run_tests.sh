#!/usr/bin/env bash
# Lint and test: bash scripts/run_tests.sh [arguments for pytest, e.g. -m "not slow" for more]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
need requirements.txt requirements-test.txt
ruff check .
ruff format --check .
# two processes; each test has files of its own
python -m pytest -n 2 --dist loadscope --no-loadscope-reorder "$@"

#!/usr/bin/env bash
# Lint and test: bash scripts/run_tests.sh [pytest arguments, e.g. -m "not slow" for more tests]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
need requirements.txt requirements-test.txt
ruff check .
ruff format --check .
# two processes; each test has its own files
python -m pytest -n 2 --dist loadscope --no-loadscope-reorder "$@"

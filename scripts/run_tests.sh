#!/usr/bin/env bash
# Lint and test: bash scripts/run_tests.sh [arguments for pytest, e.g. -m slow]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh
need requirements.txt requirements-test.txt
ruff check .
ruff format --check .
python -m pytest "$@"

#!/usr/bin/env bash
# Set up and run all tests: scripts/test.sh [pytest's arguments]
#
# The first run makes .venv and downloads the real model (about 100 MB). Tests that need a GPU
# are skipped, with that reason, where there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup_env.sh cpu,dev,models
bin=${PD_VENV:-.venv}/bin
PD_TEST_MODEL=$("$bin/pd" model get smollm2-135m | tail -n 1)
export PD_TEST_MODEL
exec "$bin/pytest" -n 2 --dist loadscope --no-loadscope-reorder "$@"

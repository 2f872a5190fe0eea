#!/usr/bin/env bash
# A real model served by one prefill and one decode node: scripts/demo.sh [demo.py's arguments]
#
# The first run makes .venv and downloads the model (about 100 MB).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup_env.sh cpu,models
bin=${PD_VENV:-.venv}/bin
model=$("$bin/pd" model get smollm2-135m | tail -n 1)
exec "$bin/python" scripts/demo.py --model "$model" "$@"

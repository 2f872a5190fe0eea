#!/usr/bin/env bash
# Lint, format and types, without changing a file: scripts/check.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup_env.sh cpu,dev,models
bin=${PD_VENV:-.venv}/bin
# mypy looks for modules by their installed names, and kernels/ is installed as pd_kernels.
mkdir -p build/types
ln -sfn ../../kernels build/types/pd_kernels

"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"

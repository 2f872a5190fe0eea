#!/usr/bin/env bash
# Make the virtual environment .venv and install this tree into it. Safe to run again.
#
#   scripts/setup_env.sh [EXTRAS]     EXTRAS as in pyproject.toml; default cpu,models
#
# Environment:
#   PD_VENV     where the environment is made (default: .venv in this tree)
#   PD_PYTHON   the Python to make it with (default: python3, or the newest python3.X found)
#   PD_TORCH    what to give pip for torch, instead of choosing by the machine; for instance
#               PD_TORCH='torch==2.9.1' or PD_TORCH='torch --index-url https://...'
#
# Torch is chosen by the machine. With an NVIDIA GPU: the default CUDA build. Without one: the
# CPU build, from a wheel that pip's own settings (find-links) know, or else from the CPU index
# of the PyTorch project; the default build would bring gigabytes of CUDA libraries.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${PD_VENV:-$root/.venv}
extras=${1:-cpu,models}
torch_version=2.13.0
cpu_index=https://download.pytorch.org/whl/cpu
started=$SECONDS

say() { printf '==> %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

find_python() {
    local candidate
    for candidate in ${PD_PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.10 or newer was found (tried: ${PD_PYTHON:-python3, python3.10 to python3.13})" \
        "install one, or name it: PD_PYTHON=/path/to/python3.11 $0"
}

check_disk() { # gigabytes wanted
    local free_kb
    free_kb=$(df -Pk "$(dirname "$venv")" | awk 'NR == 2 { print $4 }')
    if ((free_kb < $1 * 1048576)); then
        die "only $((free_kb / 1048576)) GB are free under $(dirname "$venv"), and $1 GB are needed" \
            "free some space, or put the environment elsewhere: PD_VENV=/path $0"
    fi
}

# Run a command whose output matters only if it fails, saying now and then that it still runs.
quietly() {
    local log began=$SECONDS pid status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        if (((SECONDS - began) % 20 == 19)); then say "    ... $((SECONDS - began + 1)) s"; fi
    done
    wait "$pid" || status=$?
    if ((status)); then tail -n 15 "$log" >&2; fi
    rm -f "$log"
    return "$status"
}

# pip with its own progress bars on a terminal, and our ticks elsewhere.
pip_install() {
    local pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-input)
    if [[ -t 2 ]]; then "${pip[@]}" "$@" >&2; else quietly "${pip[@]}" --quiet "$@"; fi
}

torch_works() {
    "$venv/bin/python" - <<'PY' 2>/dev/null
import sys
from importlib.metadata import version
sys.exit(tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2]) < (2, 6))
PY
}

install_torch() {
    if torch_works; then return; fi
    if [[ -n ${PD_TORCH:-} ]]; then
        say "installing torch as PD_TORCH says: $PD_TORCH"
        # shellcheck disable=SC2086  # it may hold several words
        pip_install $PD_TORCH || die "pip could not install PD_TORCH='$PD_TORCH' (see above)"
    elif has_gpu; then
        check_disk 12
        say "installing torch with CUDA (several GB)"
        pip_install 'torch>=2.6' || die "pip could not install torch (see above); is the network up?"
    elif "$venv/bin/python" -m pip install --quiet --no-index --no-deps \
        --disable-pip-version-check "torch==$torch_version" >/dev/null 2>&1; then
        say "installed torch $torch_version for the CPU from a local wheel"
    else
        say "installing torch for the CPU (about 200 MB)"
        pip_install 'torch>=2.6' --index-url "$cpu_index" ||
            die "pip could not install torch from $cpu_index (see above)" \
                "offline? then name another source: PD_TORCH='torch --find-links DIR' $0" \
                "or take the default build, which brings CUDA: PD_TORCH=torch $0"
    fi
}

if has_gpu && [[ ",$extras," != *,gpu,* ]]; then extras=$extras,gpu; fi
stamp="$venv/.pd-installed-$extras"
# What is installed depends on these; an unchanged tree has nothing to do.
key=$(cat "$root/pyproject.toml" "${BASH_SOURCE[0]}" <(echo "$root ${PD_TORCH:-}") | sha256sum)

if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$key" ]]; then
    exit 0
fi
if ! { [[ -x $venv/bin/python ]] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    python=$(find_python)
    check_disk 3
    say "making $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv" ||
        die "$python cannot make virtual environments" "on Debian or Ubuntu: apt install python3-venv"
fi
install_torch
say "installing pd with extras $extras"
# Nothing below may bring another torch than the one chosen above.
"$venv/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
    >"$venv/constraints.txt"
pip_install --constraint "$venv/constraints.txt" --editable "$root[$extras]" ||
    die "pip could not install the dependencies (see above); is the network up?"
echo "$key" >"$stamp"
say "environment ready after $((SECONDS - started)) s: $venv"

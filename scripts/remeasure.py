#!/usr/bin/env python3
"""Run benchmarks again whose figures are kept: each file of benchmarks/ says how it was made.

    python scripts/remeasure.py                      # what there is: when, at which commit, how
    python scripts/remeasure.py goodput overload     # again, one after the other

What they measure goes where their commands say, which is the file itself. Nothing else should run
on the machine meanwhile. The first that fails ends it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchlib.environment import ROOT

FOLDER = ROOT / "benchmarks"


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """By name, what each file says of its run; those that say nothing are left out."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        report = json.loads(path.read_text())
        environment = report.get("environment", {}) if isinstance(report, dict) else {}
        if "command" in environment:
            found[str(path.relative_to(folder).with_suffix(""))] = environment
    return found


def arguments(command: str) -> list[str]:
    """Of a stored command, for this Python; SystemExit if it is not one of a script here."""
    words = shlex.split(command)
    if words[:1] == ["python"]:
        words = words[1:]
    if not words or not (ROOT / words[0]).is_file():
        raise SystemExit(f"'{command}' is no command of a script that there is")
    return [sys.executable, *words]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="files, without .json")
    args = parser.parse_args()
    runs = kept(FOLDER)
    unknown = [name for name in args.names if name not in runs]
    if unknown:
        parser.error(f"{', '.join(unknown)}: there is {', '.join(runs)}")
    if not args.names:
        for name, run in runs.items():
            print(f"{name}  ({run['date'][:16]}, {run['commit']})\n    {run['command']}")
        return 0
    commands = [(name, arguments(runs[name]["command"])) for name in args.names]
    for name, command in commands:
        print(f"==> {name}: {shlex.join(command[1:])}", flush=True)
        began = time.monotonic()
        status = subprocess.run(command, cwd=ROOT).returncode
        took_s = time.monotonic() - began
        if status:
            print(f"==> {name} failed after {took_s:.0f} s, with status {status}", flush=True)
            return status
        print(f"==> {name} took {took_s:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

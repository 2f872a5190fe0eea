#!/usr/bin/env python3
"""`ray up` for real, on one machine: three hosts, the repository's own cluster file, a model.

    python scripts/ray_up_local.py --out benchmarks/ray_up.json

Needs root, Linux, sshd and rsync. Makes three hosts of namespaces on a switch, each with sshd
and a home directory of its own, writes their addresses into scripts/cluster/local.yaml and
cell.yaml, and does on the first what a user does: `ray up`, `pd deploy`, a hundred requests with
OpenAI's client, `pd deploy` again with another split while requests run, one host unplugged for
30 s and plugged in again, `pd teardown`, `ray down`.

Every answer must be what the same prompt gave before, or one clear error while the host was away;
afterwards everything must be served again, and in the end no process be left on any host. Exit
status 1 if anything of this is not so.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from benchlib.environment import environment  # noqa: E402
from benchlib.report import percentile, write_json  # noqa: E402
from hostlib import hosts as namespaces  # noqa: E402
from hostlib import ssh  # noqa: E402
from hostlib.hosts import INTERFACE, Host  # noqa: E402
from hostlib.switch import Network, switched_hosts  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402

KEY = "k-ray-up"
_TAIL = 12  # lines of a command's output that are kept
_COMMAND_S, _WHOLE_S = 600.0, 180.0
_OBJECT_STORE_BYTES = 80 << 20  # nothing of ours goes through it


def main() -> int:
    args = _arguments()
    if reason := namespaces.why_not() or ssh.why_not():
        print(f"ray_up_local: {reason}", file=sys.stderr)
        return 2
    report = environment()
    with (
        tempfile.TemporaryDirectory(prefix="ray-up-") as directory,
        switched_hosts(3) as network,
    ):
        run = RayUp(args, network, Path(directory))
        run.all()
    for problem in run.problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if args.out:
        write_json(args.out, {**report, "steps": run.steps, "problems": run.problems})
    return 1 if run.problems else 0


class RayUp:
    def __init__(self, args: argparse.Namespace, network: Network, directory: Path) -> None:
        self.args, self.network, self.directory = args, network, directory
        self.head: Host = network.hosts[0]
        self.steps: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.texts: dict[int, str] = {}
        model = args.model
        if model == "tiny":
            model = write_tiny_model(directory / "model", hidden_size=256, num_hidden_layers=6)
        self.model = str(model)

    def all(self) -> None:
        with self._step("hosts with sshd, a key and a token"):
            self._make_hosts()
        cluster, cell = self._files()
        try:
            self._run("ray up", f"ray up -y --no-config-cache {cluster}")
            self._run("pd deploy", f"pd deploy --config {cell}")
            self._ask("requests", range(self.args.requests))
            split = f"pd deploy --config {cell} --prefill 2 --decode 1"
            with self._asking("requests while the split changes", range(40)):
                self._run("pd deploy, 1 and 2 to 2 and 1", split)
            self._unplugged()
            self._run("pd teardown", "pd teardown")
        finally:
            self._run("ray down", f"ray down -y {cluster}")
            self._check_nothing_left()

    # ------------------------------------------------------------------ hosts and files
    def _make_hosts(self) -> None:
        key = ssh.make_key(self.directory)
        self.homes: dict[str, Path] = {}
        for host in self.network.hosts:
            place = self.directory / host.name
            place.mkdir()
            environment = place / "environment"
            ssh.make_environment(environment)
            self.homes[host.name] = ssh.serve_logins(
                host, place, key,
                {**_pip_settings(), "PD_VENV": str(environment), "PD_API_KEY": KEY,
                 "OMP_NUM_THREADS": "1",
                 "PD_RAY_FLAGS": f"--object-store-memory={_OBJECT_STORE_BYTES}"},
            )  # fmt: skip
        self.key = key
        self._run("ray get-auth-token", "ray get-auth-token --generate > /dev/null")

    def _files(self) -> tuple[Path, Path]:
        """The repository's own, with this cluster's addresses and names."""
        _, prefill, decode = (host.address for host in self.network.hosts)
        cluster = (ROOT / "scripts/cluster/local.yaml").read_text()
        for old, new in (
            ("worker_ips: [10.0.0.2, 10.0.0.3, 10.0.0.4]", f"worker_ips: [{prefill}, {decode}]"),
            ("10.0.0.2=prefill 10.0.0.3=decode 10.0.0.4=pool",
             f"{prefill}=prefill:2 {decode}=decode:2"),
            ("head_ip: 10.0.0.1", f"head_ip: {self.head.address}"),
            ("ssh_user: ubuntu", "ssh_user: root"),
            ("~/.ssh/id_ed25519", str(self.key)),
        ):  # fmt: skip
            cluster = _replaced(cluster, old, new)
        cell = (ROOT / "scripts/cluster/cell.yaml").read_text()
        for old, new in (
            (r"model: smollm2-135m.*", f"model: {self.model}"),
            (r"bind: eth0.*", f"bind: {INTERFACE}"),
            (r"min_hosts: .*", "min_hosts: 3\n  threads_per_node: 1\n  cpus_per_node: 0.5"),
            (r"decode: 1", "decode: 2"),
            (r"host: 10\.0\.0\.1.*", f"host: {self.head.address}"),
        ):
            assert re.search(old, cell), old
            cell = re.sub(old, new, cell)
        cell += "cache:\n  kv_cache_gib: 0.1\npool:\n  pool_dram_gib: 0.05\n"
        home = self.homes[self.head.name]
        (home / "cluster.yaml").write_text(cluster)
        (home / "cell.yaml").write_text(cell)
        return home / "cluster.yaml", home / "cell.yaml"

    # ------------------------------------------------------------------ what a user types
    def _run(self, name: str, command: str) -> None:
        with self._step(name) as step:
            step["command"] = command.replace(str(self.directory), "")
            done = self._shell(command)
            lines = [line for line in _plain(done.stdout).splitlines() if line.strip()]
            step["output"] = [
                line.replace(str(self.directory), "")[:160] for line in lines[-_TAIL:]
            ]
            if done.returncode:
                self.problems.append(f"{name}: exit status {done.returncode}")
                raise RuntimeError(f"{name} failed:\n" + "\n".join(lines[-60:]))

    def _shell(
        self, command: str, timeout_s: float = _COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """In a login of the first host, in this repository."""
        login = f"cd {ROOT} && export PATH=$PD_VENV/bin:$PATH && {command}"
        words = [
            "ssh", "-q", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null",
            "-i", str(self.key), f"root@{self.head.address}", login,
        ]  # fmt: skip
        return subprocess.run(
            self.head.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout_s,
        )  # fmt: skip

    # ------------------------------------------------------------------ requests
    def _ask(self, name: str, numbers: range, *, errors_allowed: bool = False) -> None:
        with self._step(name) as step:
            self._ask_all(step, numbers, errors_allowed=errors_allowed)

    def _ask_all(self, step: dict[str, Any], numbers: range, *, errors_allowed: bool) -> None:
        """Greedy answers to numbered prompts, four at a time; what a prompt gave once it must
        give again."""
        todo, lock = iter(numbers), threading.Lock()
        right, errors, times = [0], [], []

        def client() -> None:
            with self.head.network():
                url = f"http://{self.head.address}:8000/v1"
                with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=120) as api:
                    while (number := _next(todo, lock)) is not None:
                        began = time.monotonic()
                        try:
                            text = _answer(api, number, self.args.max_tokens)
                        except openai.OpenAIError as error:
                            errors.append(f"{type(error).__name__}: {error}"[:200])
                            continue
                        with lock:
                            times.append(time.monotonic() - began)
                            same = self.texts.setdefault(number, text) == text
                            right[0] += same
                        if not same:
                            self.problems.append(f"{step['step']}: prompt {number} differs")

        threads = [threading.Thread(target=client) for _ in range(self.args.at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        step.update(requests=len(numbers), right=right[0], errors=errors)
        if times:
            step["seconds_median"] = percentile(times, 0.5)
            step["seconds_max"] = max(times)
        if errors and not errors_allowed:
            self.problems.append(f"{step['step']}: {len(errors)} errors, such as {errors[0]}")

    @contextmanager
    def _asking(
        self, name: str, numbers: range, *, errors_allowed: bool = False
    ) -> Iterator[dict[str, Any]]:
        """The same beside something else."""
        with self._step(name) as step:
            thread = threading.Thread(
                target=self._ask_all, args=(step, numbers),
                kwargs={"errors_allowed": errors_allowed},
            )  # fmt: skip
            thread.start()
            try:
                yield step
            finally:
                thread.join()

    def _unplugged(self) -> None:
        """The last host, which decodes, is away for a while, with requests running."""
        host = self.network.hosts[-1]
        name = f"requests while {host.name} is unplugged for {self.args.cut_s:g} s"
        with self._asking(name, range(20), errors_allowed=True) as step:
            self.network.unplug(host)
            time.sleep(self.args.cut_s)
            self.network.plug_in(host)
            began = time.monotonic()
            self._await(self._is_whole)
            step["whole_again_s"] = time.monotonic() - began
        self._ask("requests afterwards", range(20))

    def _is_whole(self) -> bool:
        done = self._shell(f"pd status --url http://{self.head.address}:8000 --json", 30)
        return done.returncode == 0 and '"ready": true' in done.stdout and (
            len(re.findall(r'"role": "(?:prefill|decode)"', done.stdout)) == 3
        )  # fmt: skip

    def _await(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _WHOLE_S
        while not condition():
            if time.monotonic() > deadline:
                self.problems.append(f"the cell was not whole again within {_WHOLE_S:g} s")
                return
            time.sleep(0.5)

    # ------------------------------------------------------------------ the end
    def _check_nothing_left(self) -> None:
        for host in self.network.hosts:
            left = [
                line for line in host.run("ps", "-eo", "args").splitlines()
                if re.search(r"ray::|raylet|gcs_server|pd\.cli", line)
            ]  # fmt: skip
            if left:
                self.problems.append(f"left on {host.name}: {left[:3]}")

    @contextmanager
    def _step(self, name: str) -> Iterator[dict[str, Any]]:
        print(f"==> {name}", file=sys.stderr, flush=True)
        step: dict[str, Any] = {"step": name}
        self.steps.append(step)
        began = time.monotonic()
        try:
            yield step
        finally:
            step["seconds"] = time.monotonic() - began
            told = {key: value for key, value in step.items() if key not in ("output", "step")}
            print(f"    {told}", file=sys.stderr, flush=True)


def _pip_settings() -> dict[str, str]:
    """pip finds packages on the hosts where it finds them here."""
    settings = {
        name: value for name, value in os.environ.items()
        if (name.startswith("PIP_") or name == "SSL_CERT_FILE") and '"' not in value
    }  # fmt: skip
    mine = Path.home() / ".config" / "pip" / "pip.conf"
    if mine.is_file():
        settings.setdefault("PIP_CONFIG_FILE", str(mine))
    return settings


def _answer(api: openai.OpenAI, number: int, max_tokens: int) -> str:
    prompt = f"Chapter {number}. Of the {number * 7919 % 1000} things that " + "were seen " * 20
    done = api.completions.create(
        model="", prompt=prompt, max_tokens=max_tokens, temperature=0,
        extra_body={"ignore_eos": True, "model": None},
    )  # fmt: skip
    return done.choices[0].text


def _next(todo: Iterator[int], lock: threading.Lock) -> int | None:
    with lock:
        return next(todo, None)


def _replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"the cluster file has no {old!r}"
    return text.replace(old, new)


def _plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="tiny", help="tiny (random), or a directory")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=4, help="requests in flight")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--cut-s", type=float, default=30.0, help="how long a host is unplugged")
    parser.add_argument("--out", type=Path, help="where to write the log as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

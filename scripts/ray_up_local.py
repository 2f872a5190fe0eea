#!/usr/bin/env python3
"""`ray up` for real, on one machine: three hosts, the repository's own cluster file, a model.

    python scripts/ray_up_local.py
    python scripts/ray_up_local.py --model DIRECTORY --out benchmarks/ray_up.json

Needs root, Linux, sshd and rsync. Makes three hosts of namespaces on a switch, each with sshd
and a home directory of its own, writes their addresses into scripts/cluster/local.yaml and
cell.yaml, and does on the first what a user does: `ray up`, `pd deploy`, a hundred requests with
OpenAI's client, `pd deploy` again with another split while streams run, `pd teardown`, `ray down`.
Before the end the host that only decodes is unplugged twice while streams run: for less time than
Ray waits for a host, and for more.

Every stream must have the tokens that transformers gives, no request may fail, everything must
be served again afterwards, and in the end no process be left on any host. Exit status 1 if
anything of this is not so. With --out there is a log beside the figures: FILE.log.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from benchlib.environment import environment  # noqa: E402
from benchlib.report import options_of, write_json  # noqa: E402
from hostlib import hosts as namespaces  # noqa: E402
from hostlib import ssh  # noqa: E402
from hostlib.clients import Asked, Clients, Question, make_questions  # noqa: E402
from hostlib.cluster_files import cell_file, cluster_file  # noqa: E402
from hostlib.hosts import INTERFACE, Host  # noqa: E402
from hostlib.journal import Journal  # noqa: E402
from hostlib.serving import HTTP_PORT, ray_session  # noqa: E402
from hostlib.switch import Network, switched_hosts  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402

from pd.client import Client  # noqa: E402
from pd.errors import PDError  # noqa: E402

KEY = "k-ray-up"
_SAID = 80  # lines that are kept of what a command says
_COMMAND_S, _WHOLE_S, _ENDS_S, _STATUS_S = 900.0, 300.0, 300.0, 30.0
_OBJECT_STORE_BYTES = 80 << 20  # nothing of ours goes through it
_PROCESSES = re.compile(r"ray::|raylet|gcs_server|ray/autoscaler|pd-env|bin/pd ")


_CHATTER = re.compile(r"VINFO|Requirement already|Shared connection|^ +$|Permanently added")


class Failed(Exception):
    """A step without which the others make no sense."""


def main() -> int:
    args = _arguments()
    if reason := namespaces.why_not() or ssh.why_not():
        print(f"ray_up_local: {reason}", file=sys.stderr)
        return 2
    # So that the hosts, and what they wrote, are removed then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report, journal = environment(), Journal()
    with (
        tempfile.TemporaryDirectory(prefix="ray-up-", ignore_cleanup_errors=True) as directory,
        switched_hosts(3) as network,
    ):
        RayUp(args, network, Path(directory), journal).all()
    for problem in journal.problems:
        journal.say(f"FAILED: {problem}")
    journal.say(f"{len(journal.problems)} problems" if journal.problems else "all is well")
    if args.out:
        options = options_of(args, "out", "logs")
        done = {"options": options, "steps": journal.steps, "problems": journal.problems}
        write_json(args.out, {**report, **done})
        args.out.with_suffix(".log").write_text("\n".join(journal.lines) + "\n")
    return 1 if journal.problems else 0


class RayUp:
    def __init__(
        self, args: argparse.Namespace, network: Network, directory: Path, journal: Journal
    ) -> None:
        self.args, self.network, self.directory, self.journal = args, network, directory, journal
        self.head: Host = network.hosts[0]
        self.url = f"http://{self.head.address}:{HTTP_PORT}"
        self.clients = Clients(self.head, self.url, KEY, args.at_once)
        for host in network.hosts:
            journal.shorten(directory / host.name / "home", "~")
        journal.shorten(directory, "hosts")
        journal.shorten(ROOT, "pd")

    def all(self) -> None:
        with self._going_on():
            with self.journal.step("right answers, by transformers"):
                questions, streams = self._questions()
            with self.journal.step("hosts with sshd, and a token for Ray"):
                self._make_hosts()
                cluster, cell = self._files()
            self._command("ray up", f"cd {ROOT} && ray up -y --no-config-cache {cluster}")
            with self._going_on():
                self._serve(cell, questions, streams)
            if self.args.logs:
                self._keep_logs(self.args.logs)
            self._command("ray down", f"ray down -y {cluster}")
            self._await_nothing_left()

    def _serve(
        self, cell: Path, questions: Sequence[Question], streams: Sequence[Question]
    ) -> None:
        self._command("pd deploy", f"pd deploy --config {cell}")
        self._requests(questions)
        self._change(f"pd deploy --config {cell} --prefill 1 --decode 2", streams)
        for seconds in self.args.cut_s:
            self._cut(seconds, streams)
            self._requests(questions[: self.args.requests // 5], "requests afterwards")
        self._command("pd teardown", "pd teardown")

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """After a failure with what comes behind the `with`; not after an interruption."""
        try:
            yield
        except (Failed, PDError, subprocess.CalledProcessError) as failure:
            self.journal.problems.append(f"ended early: {failure}")

    # ------------------------------------------------------------------ before
    def _questions(self) -> tuple[list[Question], list[Question]]:
        """Short ones, and long ones to be under way while something happens."""
        args, model = self.args, self.args.model
        if model == "tiny":
            model = write_tiny_model(
                self.directory / "model",
                hidden_size=256, intermediate_size=1024, num_hidden_layers=6,
            )  # fmt: skip
        self.model = Path(model).resolve()
        make = partial(make_questions, self.model, num_prompt=args.prompt_tokens)
        return (
            make(count=args.requests, num_answer=args.max_tokens, seed=0),
            make(count=4 * args.at_once, num_answer=args.stream_tokens, seed=1),
        )

    def _make_hosts(self) -> None:
        self.key = ssh.make_key(self.directory)
        for host in self.network.hosts:
            place = self.directory / host.name
            place.mkdir()
            ssh.make_environment(place / "pd-env")
            ssh.serve_logins(
                host, place, self.key,
                {**ssh.OFFLINE, "PD_VENV": str(place / "pd-env"), "PD_API_KEY": KEY,
                 "PD_RAY_FLAGS": f"--object-store-memory={_OBJECT_STORE_BYTES}"},
            )  # fmt: skip
        self._command("a token for Ray", "ray get-auth-token --generate > /dev/null")

    def _files(self) -> tuple[Path, Path]:
        """The repository's own, with this cluster's addresses."""
        _, prefill, decode = (host.address for host in self.network.hosts)
        # A role may change where its host has room: the last host only decodes from then on.
        workers = {prefill: "prefill:2", decode: "decode:1"}
        home = self.directory / self.head.name / "home"
        (home / "cluster.yaml").write_text(
            cluster_file(self.head.address, workers, "root", self.key)
        )
        cell = cell_file(
            self.head.address, len(self.network.hosts),
            model={"model": str(self.model)},
            cluster={"prefill": 2, "decode": 1, "bind": INTERFACE, "threads_per_node": 1},
            cache={"kv_cache_gib": self.args.kv_cache_gib},
            pool={"pool_dram_gib": self.args.kv_cache_gib / 2},
        )  # fmt: skip
        (home / "cell.yaml").write_text(cell)
        return home / "cluster.yaml", home / "cell.yaml"

    # ------------------------------------------------------------------ what is shown
    def _command(self, name: str, command: str, host: Host | None = None) -> None:
        """What a user types, in a login of a host: the first."""
        with self.journal.step(name) as step:
            step["command"] = self.journal.brief(command)
            self.journal.say(f"    $ {step['command']}")
            login = f"export PATH=$PD_VENV/bin:$PATH && {command}"
            try:
                done = ssh.log_in(host or self.head, self.key, login, _COMMAND_S)
            except subprocess.TimeoutExpired:
                raise Failed(f"{name}: no end within {_COMMAND_S:g} s") from None
            lines = self.journal.brief(done.stdout).splitlines()
            for line in [line for line in lines if line and not _CHATTER.search(line)][-_SAID:]:
                self.journal.say(f"    | {line[:200]}")
            if done.returncode:
                raise Failed(f"{name}: exit status {done.returncode}")

    def _requests(self, questions: Sequence[Question], name: str = "requests") -> None:
        with self.journal.step(name) as step:
            asked = self.clients.ask(questions)
            self._judge(asked, step)
            if asked.requests < len(questions):
                self.journal.problems.append(f"{name}: only {asked.requests} were asked")

    def _change(self, command: str, streams: Sequence[Question]) -> None:
        with (
            self.journal.step("streams while the split changes") as step,
            self._asking(streams, step),
        ):
            self._command("pd deploy, 2 and 1 to 1 and 2", command)

    def _cut(self, seconds: float, streams: Sequence[Question]) -> None:
        """The last host is away for so long, with streams running."""
        host = self.network.hosts[-1]
        before = self._members()
        lost = {id_ for id_, row in before.items() if row["host"] in (host.name, host.address)}
        ray_before = _raylet(host)
        with (
            self.journal.step(f"streams while {host.name} is unplugged for {seconds:g} s") as step,
            self._asking(streams, step),
        ):
            step["there"] = sorted(lost)
            time.sleep(1.0)  # until streams run
            self.network.unplug(host)
            began = time.monotonic()
            step["given_up_after_s"] = self.journal.wait_for(
                f"{host.name} given up", lambda: not lost & set(self._members()), seconds
            )
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            self.network.plug_in(host)
            step["whole_after_s"] = self.journal.wait_for(
                f"whole again with {host.name}", lambda: self._is_whole(before), _WHOLE_S
            )
            now = self._members()
            step["new_processes"] = sorted(
                id_ for id_ in before if now.get(id_, {}).get("epoch") != before[id_]["epoch"]
            )
            step["ray_started_anew"] = _raylet(host) != ray_before
        if not lost:
            self.journal.problems.append(f"nothing ran on {host.name}")

    @contextmanager
    def _asking(self, streams: Sequence[Question], step: dict[str, Any]) -> Iterator[None]:
        with self.clients.asking(streams) as asked:
            yield
        self._judge(asked, step)

    def _judge(self, asked: Asked, step: dict[str, Any]) -> None:
        step.update(asked.as_json())
        for kind, found in (("failed", asked.errors), ("differ", asked.different)):
            if found:
                self.journal.problems.append(
                    f"{step['step']}: {len(found)} {kind}, such as {found[0]}"
                )

    # ------------------------------------------------------------------ what the server says
    def _status(self) -> Mapping[str, Any]:
        with self.head.network(), Client(self.url, api_key=KEY, timeout_s=_STATUS_S) as client:
            return client.status()

    def _members(self) -> dict[str, Mapping[str, Any]]:
        return {row["id"]: row for row in self._status()["nodes"]}

    def _is_whole(self, before: Mapping[str, Any]) -> bool:
        status = self._status()
        there = {row["id"] for row in status["nodes"] if row["state"] == "ready"}
        return bool(status["ready"]) and there == set(before)

    # ------------------------------------------------------------------ the end
    def _await_nothing_left(self) -> None:
        """`ray down` ends the head's Ray; the others end when they have missed it for a while,
        but for what reads their logs."""
        with self.journal.step("every process ends") as step:
            for host in self.network.hosts:
                ended = partial(lambda host: not _left(host, "log_monitor.py"), host)
                step[host.name] = self.journal.wait_for(f"{host.name} empty", ended, _ENDS_S)
        for host in self.network.hosts[1:]:
            self._command(f"ray stop on {host.name}", "ray stop", host)
        for host in self.network.hosts:
            if left := _left(host):
                self.journal.problems.append(f"left on {host.name}: {left[:3]}")

    def _keep_logs(self, directory: Path) -> None:
        for host in self.network.hosts:
            shutil.copytree(
                ray_session(host) / "logs", directory / host.name, dirs_exist_ok=True, symlinks=True
            )


def _raylet(host: Host) -> list[str]:
    """Its process, as long as it is the same."""
    return [line for line in host.run("ps", "-eo", "pid,comm").splitlines() if "raylet" in line]


def _left(host: Host, *but: str) -> list[str]:
    """Processes of Ray's and ours, but for those."""
    lines = host.run("ps", "-ww", "-eo", "args").splitlines()
    found = [line for line in lines if _PROCESSES.search(line)]
    # The host's sshd is told of the environment where logins find programs.
    return [line for line in found if not any(each in line for each in ("sshd", *but))]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="tiny", help="tiny (random), or a directory")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=4, help="requests in flight")
    parser.add_argument("--prompt-tokens", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument(
        "--stream-tokens", type=int, default=256, help="of streams while something happens"
    )
    parser.add_argument(
        "--cut-s", type=float, nargs="*", default=[30.0, 150.0],
        help="for how long a host is unplugged, one time after the other",
    )  # fmt: skip
    parser.add_argument("--kv-cache-gib", type=float, default=0.25, help="of each node")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    parser.add_argument("--logs", type=Path, help="a directory to keep Ray's logs in")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

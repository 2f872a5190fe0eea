"""Hosts that one can log in to, each with a home directory of its own: what `ray up` needs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hostlib.hosts import Host

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync")
_SETUPTOOLS = 77  # pyproject.toml wants it for building
_PORT, _STARTING_S = 22, 20.0

# The root user of the host has its home elsewhere than the machine's. What sshd keeps while it
# runs, and who may log in, is the host's alone; so is where Ray's ssh keeps its connections.
_PREPARE = """
set -e
mount --bind "$1/passwd" /etc/passwd
mount -t tmpfs -o size=16m tmpfs /run
mkdir /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /run/host_key
connections=/tmp/ray_ssh_$(printf root | sha256sum | cut -c-10)
mkdir -p "$connections"
mount -t tmpfs -o size=1m tmpfs "$connections"
"""

# pip on the hosts, which reach no network: all that the package needs is there.
OFFLINE = {
    "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}  # fmt: skip


def why_not() -> str:
    """What is missing, in words; empty where nothing is."""
    for program in PROGRAMS:
        if _find(program) is None:
            return f"the program '{program}' is not installed (openssh-server, rsync)"
    try:
        if int(version("setuptools").split(".")[0]) >= _SETUPTOOLS:
            return ""
    except PackageNotFoundError:
        pass
    return f"this environment lacks setuptools {_SETUPTOOLS} or newer, which installs the package"


def make_key(directory: Path) -> Path:
    """A key pair to log in with; the private half."""
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


def serve_logins(host: Host, directory: Path, key: Path, environment: Mapping[str, str]) -> Path:
    """Let whoever has the key log in to the host as root; returns the home directory.

    Sessions have `environment`, whose values hold no quotes.
    """
    home = directory / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    (home / ".bashrc").touch()  # Ray's commands read it
    users = [line for line in Path("/etc/passwd").read_text().splitlines() if line[:5] != "root:"]
    users.insert(0, f"root:*:0:0:root:{home}:/bin/bash")
    (directory / "passwd").write_text("\n".join(users) + "\n")
    host.run("sh", "-c", _PREPARE, "prepare", str(directory))
    values = " ".join(f'{name}="{value}"' for name, value in environment.items())
    options = {
        "Port": _PORT, "ListenAddress": host.address, "HostKey": "/run/host_key",
        "PidFile": "none", "UsePAM": "no", "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password", "StrictModes": "no", "SetEnv": values,
        "AuthorizedKeysFile": ".ssh/authorized_keys",
    }  # fmt: skip
    words = [f"-o{name}={value}" for name, value in options.items()]
    sshd = _find("sshd")
    assert sshd is not None
    log = directory / "sshd.log"
    process = host.start([sshd, "-D", "-e", "-f", "/dev/null", *words], {}, log)
    deadline = time.monotonic() + _STARTING_S
    while not _answers(host):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"sshd did not start on {host.name}: {log.read_text()[-1000:]}")
        time.sleep(0.05)
    return home


def log_in(
    host: Host, key: Path, command: str, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command in a login of this host, from there; both of its outputs are in stdout."""
    words = [
        "ssh", "-q", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null",
        "-oIdentitiesOnly=yes", "-i", str(key), f"root@{host.address}", command,
    ]  # fmt: skip
    return subprocess.run(
        host.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=timeout_s,
    )  # fmt: skip


def make_environment(path: Path) -> None:
    """A virtual environment that sees the packages of the one that runs this, and nothing else of
    it: the package under test is installed there anew."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(path)], check=True)
    site = next(path.glob("lib/python*/site-packages"))
    others = dict.fromkeys(each for each in sys.path if each.endswith("site-packages"))
    (site / "others.pth").write_text("\n".join(others) + "\n")
    ray = path / "bin" / "ray"
    ray.write_text(f"#!{path}/bin/python\nfrom ray.scripts.scripts import main\n\nmain()\n")
    ray.chmod(0o755)


def _answers(host: Host) -> bool:
    try:
        with host.network(), socket.create_connection((host.address, _PORT), timeout=1.0):
            return True
    except OSError:
        return False


def _find(program: str) -> str | None:
    """Also where only root's PATH leads."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")

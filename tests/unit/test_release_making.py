"""A release: the page that is made of the releases, the changelog that is closed, and the tag that is signed."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ops.cli.green  # noqa: F401
from ops.release import compatibility, making, releases
from ops.release.tree import tree
from shared.errors import Conflict, ValidationFailed
from shared.version import from_setup

ROOT = Path(__file__).resolve().parents[2]

Tree = dict[str, Any]


@pytest.fixture(scope="module")
def read() -> Tree:
    """This version."""
    return tree()


def test_the_page_on_compatibility_is_that_of_the_frozen_releases() -> None:
    assert compatibility.FILE.read_text(encoding="utf-8") == compatibility.document(), (
        "run: python -m ops.docs.contracts"
    )


def test_the_page_says_which_versions_may_run_side_by_side_and_what_each_brought(read: Tree, tmp_path: Path) -> None:
    first, second = ({**copy.deepcopy(read), "version": version} for version in ("0.9.0", "0.10.0"))
    second["migrations"]["order"]["revisions"]["0099"] = {"before": "0015", "phase": "contract", "takes_away": []}
    second["queues"]["q.order.new"] = {"consumer": "order", "arguments": {}}
    third = {**copy.deepcopy(second), "version": "1.0.0"}
    del third["settings"]["LOG_LEVEL"]
    del third["rpc"]["order_service.get_order"], third["queues"]["q.order.new"]
    for one in (first, second, third):
        releases.freeze(one, tmp_path)

    lines = compatibility.document(tmp_path).splitlines()

    assert [line for line in lines if line.startswith("| **")] == [
        "| **0.9.0** | itself | yes | by 0.10.0 |",
        "| **0.10.0** | rollback | itself | no |",
        "| **1.0.0** |  | rollback | itself |",
    ]
    assert [line for line in lines if line.startswith("- order ")] == [
        "- order is at migration 0015.",
        "- order gets 0099 (contract).",
        "- order is at migration 0015.",
    ]
    assert "- New queues: `q.order.new`." in lines
    assert {"- Gone settings: `LOG_LEVEL`.", "- Gone RPC methods: `order_service.get_order`."} <= set(lines)


CHANGELOG = "# Changelog\n\n## Unreleased\n### Added\n- a thing\n\n## 0.2.0 - 2026-11-28\n- old\n"


def test_what_is_unreleased_gets_the_version_and_the_day() -> None:
    closed = making.with_closed(CHANGELOG, "0.3.0", "2026-12-01")

    assert closed == CHANGELOG.replace("## Unreleased\n", "## Unreleased\n\n## 0.3.0 - 2026-12-01\n")
    with pytest.raises(Conflict, match="nothing under Unreleased"):
        making.with_closed(closed, "0.4.0", "2026-12-02")


def test_the_version_of_setup_cfg_is_replaced_and_nothing_else() -> None:
    before = (ROOT / "setup.cfg").read_text(encoding="utf-8")

    assert making.with_version(before, "9.9.9") == before.replace(f"version = {from_setup()}", "version = 9.9.9", 1)


@pytest.mark.parametrize("wanted", ["", "1", "1.2", "v1.2.3", "1.2.x"])
def test_a_version_has_three_numbers(read: Tree, wanted: str) -> None:
    with pytest.raises(ValidationFailed, match=r"no version like 1\.2\.3"):
        making.check(read, {**read, "version": wanted})


def test_a_version_that_is_too_low_or_cannot_run_beside_the_last_is_refused(read: Tree) -> None:
    new = copy.deepcopy(read)
    del new["settings"]["LOG_LEVEL"]
    with pytest.raises(ValidationFailed, match=r"at least 0\.3\.0, because setting LOG_LEVEL is gone"):
        making.check({**read, "version": "0.2.0"}, {**new, "version": "0.2.1"})
    making.check({**read, "version": "0.2.0"}, {**new, "version": "0.3.0"})
    del new["rpc"]["order_service.get_order"]
    with pytest.raises(Conflict, match=r"RPC order_service\.get_order: is gone"):
        making.check({**read, "version": "0.2.0"}, {**new, "version": "0.3.0"})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the files of this one as they are now, in one commit."""
    place = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("benchmarks/", "tests/")):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    git(place, "init", "--quiet")
    for name, value in {"user.name": "ann", "user.email": "ann@example.com"}.items():
        git(place, "config", name, value)
    changelog = place / "CHANGELOG.md"
    changelog.write_text(changelog.read_text(encoding="utf-8").replace("## Unreleased\n", "## Unreleased\n- more\n", 1))
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message", "all")
    return place


# The user's own configuration of git may sign, or hold hooks.
OF_NOBODY = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}


def git(place: Path, *arguments: str) -> str:
    ended = subprocess.run(
        ["git", *arguments], cwd=place, env={**os.environ, **OF_NOBODY}, capture_output=True, text=True, check=True
    )
    return ended.stdout + ended.stderr


def release(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **OF_NOBODY, "PYTHONPATH": str(place)}
    command = [sys.executable, "-m", "ops.release.making", *arguments]
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)


def test_without_a_key_or_with_uncommitted_changes_nothing_is_made(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in OF_NOBODY.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Conflict, match="no SSH key for signing is configured"):
        making.make("9.0.0", checkout)
    git(checkout, "config", "gpg.format", "ssh")
    with pytest.raises(Conflict, match="no SSH key for signing is configured"):
        making.make("9.0.0", checkout)
    git(checkout, "config", "user.signingkey", "key.pub")
    (checkout / "new").touch()
    with pytest.raises(Conflict, match="the work tree has changes"):
        making.make("9.0.0", checkout)

    assert git(checkout, "status", "--porcelain") == "?? new\n"
    assert making.main([""]) == 2
    assert capsys.readouterr().err == "release: say which: make release VERSION=1.2.3\n"


def test_a_release_is_one_commit_and_a_signed_tag(checkout: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    git(checkout, "config", "gpg.format", "ssh")
    git(checkout, "config", "user.signingkey", f"{key}.pub")
    signers = tmp_path / "signers"
    signers.write_text(f"ann@example.com {Path(f'{key}.pub').read_text()}")
    git(checkout, "config", "gpg.ssh.allowedSignersFile", str(signers))
    made = release(checkout, "9.0.0")

    assert made.returncode == 0, made.stderr
    assert 'Good "git" signature for ann@example.com' in git(checkout, "tag", "--verify", "v9.0.0")
    assert git(checkout, "status", "--porcelain") == ""
    changed = set(git(checkout, "show", "--name-only", "--format=", "v9.0.0^{commit}").split())
    assert changed >= {"CHANGELOG.md", "setup.cfg", "docs/compatibility.md", "docs/releases/9.0.0.json"}
    assert all(name.startswith("docs/") for name in changed - {"CHANGELOG.md", "setup.cfg"})
    assert "| 9.0.0 |" in (checkout / "docs/compatibility.md").read_text(encoding="utf-8")

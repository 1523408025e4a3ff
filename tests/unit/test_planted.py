"""The changes that are planted into long tests of upgrades fit the code as it is now."""

import subprocess

import pytest

from tests.upgrade.versions import PLANTED, ROOT

PATCHES = sorted(PLANTED.glob("*.patch"))


def test_there_are_some():
    assert len(PATCHES) >= 5


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_a_planted_change_applies(patch):
    applied = subprocess.run(["git", "apply", "--check", patch], cwd=ROOT, capture_output=True, text=True, check=False)
    assert applied.returncode == 0, f"{patch.name} must be made anew: {applied.stderr}"

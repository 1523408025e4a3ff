"""One version number: setup.cfg names it and everything else shows it."""

import re
from importlib import metadata

import pytest

from shared import version

CHANGELOG = version.SETUP.with_name("CHANGELOG.md")


def test_the_version_is_that_of_setup_cfg():
    assert version.from_setup() == version.VERSION


def test_without_a_setup_cfg_the_installed_package_names_the_version(monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "version", lambda name: f"7 of {name}")
    assert version.version(tmp_path / "setup.cfg") == "7 of ecom"


def test_a_setup_cfg_without_a_version_is_an_error(tmp_path):
    with pytest.raises(KeyError):
        version.from_setup(tmp_path / "setup.cfg")


def test_the_newest_release_in_the_changelog_has_the_version_of_setup_cfg():
    releases = re.findall(r"^## \[?(\d+\.\d+\.\d+)", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert releases[:1] == [version.from_setup()]

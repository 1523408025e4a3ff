"""Overlays of deploy/k8s, built once."""

import tests.patched  # noqa: F401  # isort: skip

import pytest

from tests.deploy.overlays import build


@pytest.fixture(scope="session")
def overlays(tmp_path_factory):
    """Each overlay by its name, built by kubectl with secrets as deploy/make_secrets.py makes them."""
    return build(tmp_path_factory.mktemp("k8s"))

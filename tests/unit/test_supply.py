"""What the image is made of: images by digest, a list of its packages, and a look at their known faults."""

import json
import os
import subprocess
import sys

import pytest

from deploy import audit, pin_images
from tests.unit.test_compose import DEPLOY, ROOT

OLD, NEW = f"sha256:{'0' * 64}", f"sha256:{'a' * 64}"


@pytest.fixture
def files(tmp_path):
    dockerfile, compose = tmp_path / "Dockerfile", tmp_path / "docker-compose.yml"
    dockerfile.write_text(f"FROM python:3.13-slim AS build\nFROM python:3.13-slim@{OLD}\n")
    compose.write_text("    image: ecom:local\n    image: rabbitmq:4.2-management\n    image: postgres:17  # why\n")
    return dockerfile, compose


def test_every_image_but_ours_is_pinned_to_what_its_tag_names_now(files, monkeypatch):
    assert pin_images.unpinned(files) == ["postgres:17", "python:3.13-slim", "rabbitmq:4.2-management"]
    monkeypatch.setattr(pin_images, "digest_of", lambda image: NEW)
    assert len(pin_images.pin(files)) == 3
    assert files[0].read_text() == f"FROM python:3.13-slim@{NEW} AS build\nFROM python:3.13-slim@{NEW}\n"
    assert files[1].read_text() == (
        f"    image: ecom:local\n    image: rabbitmq:4.2-management@{NEW}\n    image: postgres:17@{NEW}  # why\n"
    )
    assert pin_images.unpinned(files) == []


def test_the_images_in_use_are_found_in_their_files():
    found = {image for path in pin_images.FILES for _, image, _ in pin_images.IMAGE.findall(path.read_text())}
    assert {image.partition(":")[0] for image in found} == {"python", "rabbitmq", "postgres"}


def test_an_answer_that_is_no_digest_changes_nothing(files, tmp_path, monkeypatch):
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho manifest unknown\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = [path.read_text() for path in files]
    with pytest.raises(OSError, match="manifest unknown"):
        pin_images.pin(files)
    assert [path.read_text() for path in files] == before


def test_the_bill_of_materials_has_the_packages_of_the_image_with_their_hashes(tmp_path):
    lock = [sys.executable, DEPLOY / "requirements.py", ROOT / "setup.cfg", ROOT / "requirements.lock"]
    runtime = tmp_path / "runtime.txt"
    runtime.write_bytes(subprocess.run(lock, capture_output=True, check=True).stdout)
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", runtime, "--output-reproducible"]
    bill = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert bill["bomFormat"] == "CycloneDX"
    found = {component["name"]: component for component in bill["components"]}
    assert found.keys() >= {"nameko", "psycopg2-binary", "werkzeug"}
    assert not found.keys() & {"pytest", "pip-audit", "trustme"}
    assert all(component["externalReferences"][0]["hashes"] for component in found.values())


def tool(tmp_path, monkeypatch, script):
    """Put a program into the place of pip-audit."""
    path = tmp_path / "tool.py"
    path.write_text(script)
    monkeypatch.setattr(audit, "TOOL", [sys.executable, str(path)])


@pytest.mark.parametrize(
    ("package", "code", "said"),
    [
        ({"vulns": []}, 0, "1 packages, 0 known faults"),
        ({"vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}, 1, "x 1: CVE-1, fixed in 2\n1 packages, 1 known faults"),
        ({"skip_reason": "not found"}, 1, "1 packages, 0 known faults"),
    ],
)
def test_known_faults_are_listed(tmp_path, monkeypatch, capsys, package, code, said):
    answer = json.dumps({"dependencies": [{"name": "x", "version": "1", **package}]})
    tool(tmp_path, monkeypatch, f"print({answer!r}); raise SystemExit({code})")
    assert audit.main() == code
    assert capsys.readouterr().out == f"{said}\n"


def test_an_advisory_service_out_of_reach_is_no_pass_and_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    tool(tmp_path, monkeypatch, "raise OSError('Failed to resolve api.osv.dev')")
    assert audit.main() == 3
    assert capsys.readouterr().err == (
        "audit: the database of known faults cannot be asked: OSError: Failed to resolve api.osv.dev\n"
    )

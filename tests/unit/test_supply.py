"""What the image is made of: images by digest, a list of its packages, and a look at their known faults."""

import json
import os
import subprocess
import sys

import pytest

from deploy import audit, pin_images, supply
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
    assert {image.partition(":")[0] for image in found} == {"python", "rabbitmq", "postgres", "nginx"}


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


# What each step of the image needs and, with it, what is run.
STEPS = [
    ("image", "docker or podman", "podman", "podman build --file deploy/Dockerfile --tag ecom:"),
    ("scan", "trivy or grype", "trivy", "trivy image --severity HIGH,CRITICAL --ignore-unfixed --exit-code 1 ecom:"),
    ("scan", "trivy or grype", "grype", "grype ecom:"),
    ("sign", "cosign", "cosign", "cosign sign --yes --key k.key host/ecom@sha256:0"),
]


def supply_step(tmp_path, step, *tools, **environ):
    """Run a step where only these programs are installed, each of which only says its arguments."""
    for name in tools:
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} $*\n")
        (tmp_path / name).chmod(0o755)
    command = [sys.executable, DEPLOY / "supply.py", step]
    env = {"PATH": str(tmp_path), "BUILD": "b7", **environ}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("step", "needed", "tool", "runs"), STEPS)
def test_a_step_without_its_tool_says_in_a_line_what_it_needs(tmp_path, step, needed, tool, runs):
    ended = supply_step(tmp_path, step)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == f"{step}: {needed} is needed, and is not installed\n"


@pytest.mark.parametrize(("step", "needed", "tool", "runs"), STEPS)
def test_a_step_runs_the_tool_that_is_there(tmp_path, monkeypatch, step, needed, tool, runs):
    (tmp_path / "sbom.cdx.json").write_text("{}")
    monkeypatch.setattr(supply.shutil, "which", lambda name: name if name == tool else None)
    monkeypatch.setattr(supply, "SBOM", str(tmp_path / "sbom.cdx.json"))
    monkeypatch.setenv("BUILD", "b7")
    if step == "sign":
        monkeypatch.setenv("IMAGE", "host/ecom@sha256:0")
        monkeypatch.setenv("COSIGN_KEY", "k.key")
    ran = []
    monkeypatch.setattr(supply, "_run", lambda command: ran.append(" ".join(command)) or 0)
    assert supply.main([step]) == 0
    assert ran[0].startswith(runs)
    if step != "sign":
        assert "-b7" in ran[0]
    else:
        assert ran[1].startswith("cosign attest --yes --key k.key --type cyclonedx")


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "IMAGE must name an image of a registry by digest"),
        ({"IMAGE": "host/ecom:1"}, "IMAGE must name an image of a registry by digest"),
        ({"IMAGE": "host/ecom@sha256:0"}, "COSIGN_KEY must name the key"),
    ],
)
def test_only_an_image_with_a_digest_is_signed_and_only_with_a_key(tmp_path, environ, says):
    ended = supply_step(tmp_path, "sign", "cosign", **environ)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert says in ended.stderr


def test_a_failing_tool_fails_its_step(monkeypatch, tmp_path):
    (tmp_path / "podman").write_text("#!/bin/sh\nexit 5\n")
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BUILD", "b7")
    assert supply.main(["image"]) == 5

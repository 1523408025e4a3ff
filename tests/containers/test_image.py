"""What the image holds and what it does not."""

from __future__ import annotations

import pytest

from tests.containers.figures import Figures
from tests.containers.site import Site

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]

LIMIT_MB = 100  # of ours, beside the image of python
LAYERS = {"/venv": "packages", "/app": "code"}


@pytest.fixture(scope="module", autouse=True)
def built(site: Site) -> None:
    site.run("python3 deploy/make_secrets.py")
    site.compose("build --quiet")


def inside(site: Site, command: str, codes: tuple[int, ...] = (0,)) -> str:
    """What a shell of the image prints."""
    hardened = "--read-only --cap-drop ALL --security-opt no-new-privileges:true"
    return site.run(f"docker run --rm {hardened} ecom:local bash -c '{command}'", codes=codes).strip()


def test_the_image_is_small_and_most_of_it_are_the_packages(site: Site, figures: Figures) -> None:
    sizes = {}
    for image in ("python:3.13-slim", "ecom:local"):
        sizes[image] = int(site.run(f"docker image inspect --format {{{{.Size}}}} {image}")) / 1e6
    ours = sizes["ecom:local"] - sizes["python:3.13-slim"]
    figures.note("image", "all", f"{sizes['ecom:local']:.0f} MB")
    figures.note("image", "python", f"{sizes['python:3.13-slim']:.0f} MB")
    for folder, name in LAYERS.items():
        figures.note("image", name, f"{int(inside(site, f'du -s --bytes {folder}').split()[0]) / 1e6:.0f} MB")
    largest = inside(site, "du -s --bytes /venv/lib/python3*/site-packages/* | sort -rn | head -n 8").split()
    for size, path in zip(largest[::2], largest[1::2], strict=True):
        figures.note("the largest packages", path.rpartition("/")[2], f"{int(size) / 1e6:.0f} MB")
    assert ours < LIMIT_MB


def test_it_runs_as_a_user_of_its_own_who_can_write_nowhere(site: Site) -> None:
    assert inside(site, "id -u; id -g").split() == ["10001", "10001"]
    for folder in ("/", "/app", "/venv", "/tmp"):
        assert "Read-only file system" in inside(site, f"touch {folder}/x 2>&1", (1,))


@pytest.mark.parametrize("program", ["pip", "pip3", "gcc", "cc", "make", "git", "curl"])
def test_it_has_no_program_that_builds_or_downloads(site: Site, program: str) -> None:
    assert inside(site, f"command -v {program}", (1,)) == ""


def test_its_python_installs_nothing(site: Site) -> None:
    assert "No module named" in inside(site, "python -m pip 2>&1", (1,))


def test_it_holds_no_tests_and_no_stack_of_a_checkout(site: Site) -> None:
    assert inside(site, 'find /app /venv -name tests -o -name "test_*.py" -path "/app/*"') == ""
    assert "No such file" in inside(site, "ls /app/ops/local 2>&1", (2,))

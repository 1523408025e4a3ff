"""The engine, the images and the checkout that the tests of this folder share. `make compose-test` runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.containers import engine, mirror, stand_ins
from tests.containers.engine import Engine, NoEngine
from tests.containers.figures import Figures
from tests.containers.site import PROJECT, Site

OURS = f"label=com.docker.compose.project={PROJECT}"


@pytest.fixture(scope="session")
def docker() -> Iterator[Engine]:
    """A container engine, with the images that docker-compose.yml and the Dockerfile name."""
    try:
        found = engine.start()
    except NoEngine as reason:
        pytest.exit(f"compose-test: {reason}", returncode=2)
    with ExitStack() as held:
        held.callback(found.stop)
        here = found.run("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "bridge").strip()
        index = mirror.url(here)
        if stand_ins.PYTHON in stand_ins.make_missing(found, index) and index:
            held.enter_context(mirror.serve(here))
        remove_all(found)
        yield found
        remove_all(found)


def remove_all(engine: Engine) -> None:
    """Remove what this run, or one that was cut short, has started."""
    for kind, listed in (("rm -fv", "ps -aq"), ("volume rm", "volume ls -q"), ("network rm", "network ls -q")):
        found = engine.run(*listed.split(), "--filter", OURS).split()
        if found:
            engine.run(*kind.split(), *found)


@pytest.fixture(scope="module")
def site(docker: Engine, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A checkout of its own. What it started is removed with its data, after its logs were saved."""
    site = Site(tmp_path_factory.mktemp("checkout") / "ecom", docker)
    yield site
    log = engine.FOLDER / f"{request.module.__name__.rpartition('.')[2]}.log"
    log.write_text(site.compose("logs --no-color --timestamps", codes=range(256)), encoding="utf-8")
    site.compose("down --volumes --remove-orphans", codes=range(256))


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """What the tests measure, printed at the end."""
    figures = Figures()
    yield figures
    text = "\n".join(figures.lines())
    engine.say(f"figures:\n{text}")
    (engine.FOLDER / "figures.txt").write_text(f"{text}\n", encoding="utf-8")

"""The import rules hold, and every one of them is seen to fail when it is broken."""

import ast
import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PACKAGES = SETUP["importlinter"]["root_packages"].split()
CONTRACTS = [SETUP[section]["name"] for section in SETUP.sections() if section.startswith("importlinter:contract:")]

INDEPENDENT = "Services never import each other"
LAYERS = "Services stand on shared, and shared on topology"
NOBODY = "Nobody imports ops or tests"
LOCAL = "Nothing in the production image imports ops.local"
GATEWAY = "The gateway has no database"
PURE = "Rules, catalogue, errors, ids, order states and tables need only the standard library"
DOMAIN = "The rules have no clock, no chance and no I/O"
MODELS = "Models know tables and nothing of messages"
PREDICT = "Predictors read tables and know nothing of messages on the wire"
NAMEKO = "Only the edge imports Nameko"
EVENTLET = "Only one module of the edge imports eventlet, beside the one that patches"
AMQP = "Only the edge imports amqp"
BROKER = "Only topology speaks to the broker by another library"

# (contract, where an import is planted, what it imports)
PLANTS = [
    (INDEPENDENT, "payment_service.service", "order_service"),
    (INDEPENDENT, "gateway.api.http", "auth_service"),
    (LAYERS, "shared.inbox", "order_service"),
    (LAYERS, "topology.table", "shared.errors"),
    (NOBODY, "shared.outbox", "ops.cli.main"),
    (NOBODY, "gateway.service", "ops"),
    (NOBODY, "ops.cli.main", "tests.conftest"),
    (LOCAL, "ops.dlq.replay", "ops.local.processes"),
    (LOCAL, "ops.cli.users", "ops.local.install"),
    (LOCAL, "ops.release.releases", "ops.local.install"),
    (GATEWAY, "gateway.site.pages", "sqlalchemy.orm"),
    (GATEWAY, "gateway.api.http", "shared.outbox"),
    (PURE, "order_service.domain", "sqlalchemy"),
    (PURE, "payment_service.domain", "shared.edge.tx"),
    (PURE, "shared.events", "marshmallow"),
    (PURE, "shared.errors", "nameko.exceptions"),
    (PURE, "shared.facts", "sqlalchemy"),
    (PURE, "shared.ids", "shared.config"),
    (PURE, "shared.replays", "marshmallow"),
    (PURE, "shared.roles", "shared.auth"),
    (PURE, "topology.table", "topology.declare"),
    (PURE, "topology.services", "topology.declare"),
    (PURE, "shared.order_states", "sqlalchemy"),
    (DOMAIN, "inventory_service.domain", "time"),
    (DOMAIN, "order_service.domain", "urllib.request"),
    (DOMAIN, "ops.release.rules", "time"),
    (MODELS, "order_service.models", "nameko.events"),
    (MODELS, "inventory_service.models", "eventlet"),
    (MODELS, "payment_service.models", "shared.edge.tx"),
    (MODELS, "inventory_service.audit.chain", "shared.edge.tx"),
    (PREDICT, "order_service.predict", "shared.edge.tx"),
    (PREDICT, "payment_service.predict", "nameko.rpc"),
    (NAMEKO, "order_service.service", "nameko.rpc"),
    (NAMEKO, "shared.relay", "nameko.extensions"),
    (NAMEKO, "ops.service", "nameko.dependency_providers"),
    (NAMEKO, "payment_service.http_provider", "nameko.extensions"),
    (NAMEKO, "shared.auth", "nameko_sqlalchemy"),
    (BROKER, "order_service.service", "kombu"),
    (AMQP, "shared.metrics", "amqp"),
    (AMQP, "shared.relay", "amqp.exceptions"),
    (AMQP, "ops.dlq.replay", "amqp"),
    (EVENTLET, "payment_service.http_provider", "eventlet"),
    (EVENTLET, "shared.edge.batch", "eventlet.event"),
    (EVENTLET, "ops.dlq.replay", "eventlet"),
    (BROKER, "ops.dlq.census", "pika"),
    (BROKER, "gateway.service", "pika"),
]


def lint_imports(tree: Path) -> tuple[int, str]:
    """The exit code and the words of import-linter on a tree."""
    ended = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--config", "setup.cfg", "--no-cache"],
        cwd=tree,
        env={"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stdout


@pytest.fixture(scope="module")
def clean_tree(tmp_path_factory):
    """A copy of what the rules speak of."""
    tree = tmp_path_factory.mktemp("architecture")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tree)
    return tree


def test_the_tree_keeps_every_rule():
    code, said = lint_imports(ROOT)
    assert code == 0, said
    assert f"{len(CONTRACTS)} kept, 0 broken" in said


def test_every_rule_has_an_import_that_breaks_it():
    assert {contract for contract, _, _ in PLANTS} == set(CONTRACTS)


@pytest.mark.parametrize(("contract", "importer", "imported"), PLANTS)
def test_a_planted_import_breaks_its_rule(clean_tree, contract, importer, imported):
    path = clean_tree / f"{importer.replace('.', '/')}.py"
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\nimport {imported}\n")
    try:
        code, said = lint_imports(clean_tree)
    finally:
        path.unlink() if before is None else path.write_text(before)
    assert code == 1, said
    assert f"{contract} BROKEN" in said
    # What external packages have inside, the linter does not look at.
    seen = imported if imported.split(".")[0] in PACKAGES else imported.split(".")[0]
    assert any(importer in line and seen in line for line in said.splitlines()), said


PURE_SHARED = {
    "shared.envelope",
    "shared.events",
    "shared.prices",
    "shared.schema",
    "shared.times",
    "shared.errors",
    "shared.facts",
    "shared.ids",
    "shared.replays",
    "shared.roles",
    "shared.order_states",
    "shared.enumerations",
    "topology.services",
    "topology.table",
}
PURE_FILES = sorted(
    [ROOT / f"{name.replace('.', '/')}.py" for name in PURE_SHARED]
    + [path for package in PACKAGES for path in (ROOT / package).rglob("domain.py")]
)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = f"{'.' * node.level}{node.module or ''}"
            # `from shared import ids` imports a module, `from shared.ids import uuid7` a name in one.
            found |= {f"{whole}.{name.name}" for name in node.names} if whole in PACKAGES else {whole}
    return found


@pytest.mark.parametrize("path", PURE_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_pure_module_imports_the_standard_library_and_its_like_alone(path):
    """The linter knows a list of what is forbidden; this one knows what is allowed, so it also stops a newcomer."""
    others = {name for name in imports_of(path) if name.split(".")[0] not in sys.stdlib_module_names}
    service = path.relative_to(ROOT).parts[0]
    assert others <= PURE_SHARED | {f"{service}.domain"}


@pytest.mark.parametrize("path", sorted((ROOT / "shared/edge").glob("*.py")), ids=lambda path: path.name)
def test_a_file_of_the_edge_is_small_enough_to_be_replaced(path):
    assert len(path.read_text().splitlines()) <= 250

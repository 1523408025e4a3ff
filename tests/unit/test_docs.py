"""The pages written by hand agree with the tree: paths, links, routes and figures."""

import re
from pathlib import Path

import click
import pytest
from prometheus_client import REGISTRY

from gateway import following
from gateway.orders import MAX_WAIT_S
from ops.cli import main as cli
from ops.docs import budgets, readme
from order_service import domain
from shared.config import Settings
from shared.order_states import AT_REST, Reason, Status
from tests.unit.test_gateway_http import ROUTES
from topology.services import SERVICES

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for folder, pattern in ((".", "*.md"), ("docs", "**/*.md"), ("tests", "*.md"), ("deploy", "*.md"))
    for path in (ROOT / folder).glob(pattern)
)
# Pages of the present tree; decisions and the changelog also speak of the past.
OF_THE_PRESENT = [page for page in PAGES if "decisions/0" not in page and page != "CHANGELOG.md"]

FOLDERS = "|".join([*(service.package for service in SERVICES), "topology", "shared", "tests", "docs", "deploy"])
PATH = re.compile(rf"(?<![\w./$-])((?:{FOLDERS})/[\w./-]*\w/?)(?![\w*{{<])")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", OF_THE_PRESENT)
def test_every_path_on_a_page_exists(page: str) -> None:
    assert [path for path in PATH.findall(text_of(page)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        found = (ROOT / page).parent / path if path else ROOT / page
        if not found.exists() or (anchor and anchor not in anchors_of(str(found.resolve().relative_to(ROOT)))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_has_a_heading_twice(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    found = re.findall(r"^#+ (.+)$", text, re.M)
    if page != "CHANGELOG.md":  # which has the same headings for each version
        assert sorted(found) == sorted(set(found))


def symptoms() -> list[list[str]]:
    """The rows of the list of symptoms: symptom, first command, second command, cause."""
    rows = re.findall(r"^\| (.+) \|$", text_of("docs/operations.md").partition("### ")[0], re.M)
    return [row.split(" | ") for row in rows[1:]]


def test_each_symptom_leads_to_its_cause_by_commands_of_ecom() -> None:
    rows = symptoms()
    assert len(rows) >= 12
    for symptom, first, then, cause in rows:
        assert re.search(r"\]\(", cause), symptom
        for words in re.findall(r"`ecom ([a-z -]+)", f"{first} {then}"):
            command: click.Command = cli.ecom
            for word in words.split():
                assert isinstance(command, click.Group), words
                command = command.commands[word]
        assert "curl" not in first + then, symptom
    assert "curl" not in text_of("docs/operations.md").partition("## What happens to a message")[0]


def test_every_alarm_and_every_metric_is_in_the_operations_page() -> None:
    names = {collected.name for collected in REGISTRY.collect() if collected.name.startswith("ecom_")}
    _, _, table = text_of("docs/operations.md").partition("## Metrics")
    listed = {name.removesuffix("_total") for name in re.findall(r"`(ecom_[a-z_]+)", table)}
    assert listed == names
    gauges = re.findall(r"`(ecom_[a-z_]+)`", " ".join(row[0] for row in symptoms()))
    assert set(gauges) <= set(re.findall(r"ecom_[a-z_]+", table))


def test_every_route_is_in_the_table_of_the_http_page() -> None:
    calls = re.findall(r"`(GET|POST|PUT|DELETE|PATCH) (/[^`?]*)", text_of("docs/http.md"))
    listed = {(method, re.sub(r"{\w+}", "{}", path)) for method, path in calls}

    assert listed - {("GET", "/healthz")} == {(route.method, re.sub(r"{\w+}", "{}", route.label)) for route in ROUTES}


def test_every_figure_of_a_stop_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w./-]+)` \| (\d+) \|$", text_of("CONTRIBUTING.md"), re.M)

    assert len(rows) >= 7
    for name, path, seconds in rows:
        found = re.search(rf"^\s*{name}\s*[=:] (\d+)", text_of(path), re.M)
        assert found, f"{path} has no {name}"
        assert found[1] == seconds, f"{path}: {name}"


def test_the_page_on_performance_says_what_each_batch_may_cost() -> None:
    text = budgets.FILE.read_text(encoding="utf-8")
    assert budgets.with_budgets(text) == text, "run: python -m ops.docs.contracts"
    for unmarked in ("", budgets.BEGINS, budgets.BEGINS + budgets.ENDS + budgets.BEGINS):
        with pytest.raises(ValueError, match="mark the place"):
            budgets.with_budgets(unmarked)


def test_the_readme_says_what_each_service_does() -> None:
    text = text_of("README.md")

    assert readme.with_processes(text) == text, "run: python -m ops.docs.contracts"


def test_the_page_of_streams_lists_every_state_and_every_reason() -> None:
    text = text_of("docs/streams.md")
    states = dict(re.findall(r"^\| `([A-Z_]+)` \| (yes|no) \|", text, re.M))
    reasons = re.findall(r"^\| `([a-z_]+)` \|", text, re.M)

    assert states == {status: "yes" if status in AT_REST else "no" for status in Status}
    assert reasons == list(Reason)


def test_the_page_of_streams_says_how_long_everything_takes() -> None:
    text = " ".join(text_of("docs/streams.md").split())

    assert f"after {Settings.order_deadline_s / 60:.0f} minutes (`ORDER_DEADLINE_S`)" in text
    assert f"One comes every {following.KEEP_ALIVE_S:.0f} s" in text
    assert f"after {following.MAX_STREAM_S / 60:.0f} minutes, when the token expired" in text
    assert f"One call waits at most {MAX_WAIT_S} s" in text


@pytest.mark.parametrize("language", following.CLIENTS)
def test_the_page_of_streams_shows_the_clients_that_the_document_shows(language: str) -> None:
    block = f"```{language.lower()}\n{following.Stream.samples[language]}```\n"

    assert block in text_of("docs/streams.md")


def test_an_order_is_cancelled_for_each_reason_that_is_listed() -> None:
    assert {rule.reason for rule in domain.TABLE} - {None} == set(Reason)


def test_every_lint_rule_that_is_off_is_on_the_page_of_clients() -> None:
    files = (ROOT / "docs" / "clients" / "generated").glob("*.yaml")
    off = {rule for file in files for rule in re.findall(r"^  ([\w-]+): off$", file.read_text(encoding="utf-8"), re.M)}

    listed = re.findall(
        r"^\| (.*`) \| (.+) \|$", text_of("docs/clients/README.md").partition("These rules are off")[2], re.M
    )

    assert off == {rule for rules, _ in listed for rule in re.findall(r"`([\w-]+)`", rules)}
    assert len(off) == 3


def test_every_test_that_the_page_of_security_names_exists() -> None:
    named = re.findall(r"`(unit|integration|e2e|chaos|tls)/(\w+)(?:::(\w+))?`", (ROOT / "docs/security.md").read_text())
    assert len(named) > 50
    for folder, file, name in named:
        text = (ROOT / "tests" / folder / f"test_{file}.py").read_text(encoding="utf-8")
        assert not name or f"def test_{name}(" in text, f"{folder}/{file}::{name}"

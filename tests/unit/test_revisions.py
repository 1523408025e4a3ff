"""Which revision of its database a service needs."""

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from ops.cli.migrate import ALL, last_of
from shared import revisions
from shared.errors import CannotWork, ConfigurationFault
from shared.revisions import CONTRACT, EXPAND, PHASES, ROOT, Revision, lacking, needed_revision, revisions_of
from topology.services import BY_NAME, DATABASES

OF_A_SERVICE = tuple(
    Revision(name, phase)
    for name, phase in (("0001", EXPAND), ("0002", CONTRACT), ("0003", EXPAND), ("0004", CONTRACT))
)


@pytest.fixture
def order(monkeypatch):
    """A service with four revisions, of which it needs the third."""
    monkeypatch.setattr(revisions, "revisions_of", lambda service: OF_A_SERVICE)
    return "order"


def migrations(service):
    return ROOT / BY_NAME[service].package / "migrations"


@pytest.mark.parametrize("service", DATABASES)
def test_files_and_alembic_agree_on_the_revisions_and_their_phases(service):
    config = Config()
    config.set_main_option("script_location", str(migrations(service)))
    scripts = reversed(list(ScriptDirectory.from_config(config).walk_revisions()))

    assert [Revision(script.revision, script.module.phase) for script in scripts] == list(revisions_of(service))


@pytest.mark.parametrize("service", DATABASES)
def test_every_service_needs_one_of_its_revisions(service):
    assert lacking(service, needed_revision(service)) is None


@pytest.mark.parametrize("service", DATABASES)
def test_a_new_migration_is_made_with_a_phase(service):
    template = (migrations(service) / "script.py.mako").read_text(encoding="utf-8")
    assert any(f'\nphase = "{phase}"\n' in template for phase in PHASES)


def test_a_migration_without_a_phase_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(revisions, "ROOT", tmp_path)
    versions = tmp_path / "order_service" / "migrations" / "versions"
    versions.mkdir(parents=True)
    with pytest.raises(ConfigurationFault, match="the migrations of order are not installed"):
        revisions_of.__wrapped__("order")

    (versions / "0001_first.py").write_text('revision = "0001"\n# phase = "expand"\nphase = "later"\n')
    with pytest.raises(ConfigurationFault, match=r"0001_first\.py does not say its phase: expand or contract"):
        revisions_of.__wrapped__("order")


@pytest.mark.parametrize("found", ["0003", "0004", "9999", "0000c0ffee"])
def test_what_was_added_is_there_at_the_needed_revision_at_later_ones_and_at_unknown_ones(order, found):
    assert lacking(order, found) is None


@pytest.mark.parametrize("found", ["0001", "0002"])
def test_an_older_revision_is_named_with_the_one_that_is_needed(order, found):
    assert lacking(order, found) == (
        f"the database is at revision {found}, this version needs 0003; `ecom migrate` does it"
    )


def test_a_database_without_a_revision_is_not_migrated(order):
    assert lacking(order, None) == "the database is not migrated; `ecom migrate` does it"


@pytest.mark.parametrize(
    ("found", "phase", "last"),
    [
        ("0001", ALL, "0004"),
        ("0002", EXPAND, "0003"),
        ("0003", EXPAND, "0003"),
        ("0003", CONTRACT, "0004"),
        ("0004", CONTRACT, "0004"),
        (None, EXPAND, "0004"),
    ],
)
def test_a_phase_goes_as_far_as_its_own_migrations_follow_one_another(order, found, phase, last):
    assert last_of(order, found, phase) == last


@pytest.mark.parametrize(
    ("found", "phase", "said"),
    [
        ("0001", EXPAND, r"order: 0002 \(contract\) comes before 0003 \(expand\)"),
        ("0001", CONTRACT, r"order: 0003 \(expand\) comes before 0004 \(contract\)"),
        ("0002", CONTRACT, r"order: 0003 \(expand\) comes before 0004 \(contract\)"),
    ],
)
def test_a_phase_that_would_pass_over_migrations_of_the_other_is_refused(order, found, phase, said):
    with pytest.raises(CannotWork, match=said):
        last_of(order, found, phase)

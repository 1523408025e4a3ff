"""`ecom audit`: whether the release audit, or an export of it, is what was recorded.

Only click and the standard library are imported here, and the engine where a command needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops.cli.console import FOUND, actor_option, bar, harmless, json_option, login, print_json
from ops.cli.home import read
from ops.cli.tables import Table
from shared.config import AUDIT, Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from ops.audit.chain import Verdict
    from ops.dlq.service_databases import ServiceDatabases

HISTORY = Table(
    ("started_at", "finished_at", "kind", "actor", "outcome"),
    optional=("finished_at",),
    empty="no verification and no export",
)


@contextmanager
def _databases(settings: Settings) -> Iterator[tuple[ServiceDatabases, Connection]]:
    """The services' databases to read, and the operations ledger. Raises CannotWork."""
    # isort: off
    from ops.cli import green  # noqa: F401

    # isort: on
    from ops.dlq.service_databases import ServiceDatabases, database_faults
    from shared.edge.postgres import connect

    name = "ecom audit"
    databases = ServiceDatabases(settings, name)
    engine = connect(settings.database_url("ops"), name).execution_options(isolation_level="AUTOCOMMIT")
    try:
        with database_faults("ops"), engine.connect() as ledger:
            yield databases, ledger
    finally:
        databases.close()
        engine.dispose()


@click.group()
def audit() -> None:
    """The release audit: whether it, or an export, was altered."""


@audit.command("verify")
@actor_option
@json_option
def audit_verify(actor: str | None, as_json: bool) -> None:
    """Compare all releases with their seals and with the ledger.

    Exit 1 when anything is wrong.

    Finds rows and seals that were altered, deleted or inserted past the service, and where. Records how it ended.
    """
    settings = read(AUDIT)
    _ = settings.audit_key  # before anything is opened
    actor, started_at = actor or login(), datetime.now(UTC)
    with _databases(settings) as (databases, witness):
        from ops.audit import ledger
        from ops.audit.chain import verify

        with bar("rows") as seen, databases.read("inventory") as chain:
            verdict = verify(chain, witness, settings.audit_keys, seen)
        outcome = verdict.sentence()
        figures = {"intact": verdict.intact, "seals": verdict.seals, "rows": verdict.rows}
        ledger.write_verification(witness, actor, figures, outcome, started_at)
    if as_json:
        print_json({"actor": actor, "outcome": outcome, **verdict.as_dict()})
    else:
        _say(verdict)
    sys.exit(0 if verdict.intact else FOUND)


def _say(verdict: Verdict) -> None:
    for fault in verdict.faults:
        click.echo(f"fault: {_line(fault)}")
    if verdict.found > len(verdict.faults):
        click.echo(f"and {verdict.found - len(verdict.faults):,} faults more")
    for warning in verdict.warnings:
        click.echo(f"warning: {_line(warning)}")
    click.echo(verdict.summary())
    if verdict.head:
        click.echo(f"head: seal {verdict.last}, {_line(verdict.head)}")
    click.echo(f"rows without seal: {verdict.waiting:,}; seals that the ledger does not know: {verdict.unwitnessed:,}")


@audit.command("history")
@click.option("--max", "most", type=click.IntRange(1, 1000), default=50, show_default=True, help="The N newest.")
@json_option
def audit_history(most: int, as_json: bool) -> None:
    """List verifications and exports, the newest first."""
    with _databases(read(AUDIT)) as (databases, witness):
        from inventory_service.audit.exports import list_exports
        from ops.audit import ledger

        verifications = ledger.verifications(witness, most)
        with databases.read("inventory") as session:
            exports, _ = list_exports(session, most)
    found: list[dict[str, Any]] = [{"kind": "verification", **one} for one in verifications]
    found += [{"kind": "export", "actor": one.pop("exported_by"), "outcome": _exported(one), **one} for one in exports]
    found = sorted(found, key=lambda one: str(one["started_at"]), reverse=True)[:most]
    if as_json:
        print_json({"history": found})
    else:
        HISTORY.show([one[name] for name in HISTORY.columns] for one in found)


def _exported(export: dict[str, Any]) -> str:
    filters = ", ".join(f"{name} {value}" for name, value in export["filters"].items()) or "everything"
    if export["finished_at"] is None:
        return f"{filters}; not finished"
    return f"{export['rows']:,} rows of {filters}, up to seal {export['sealed_to']}; sha256 {export['sha256']}"


@audit.command("verify-export")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True, readable=True))
@json_option
def audit_verify_export(file: Path, as_json: bool) -> None:
    """Prove that FILE is an export, complete and unaltered.

    Exit 1 when it is not. Needs AUDIT_KEY and no database.
    """
    from ops.audit.files import prove

    settings = read(AUDIT)
    _ = settings.audit_key
    with bar("bytes") as seen:
        proof = prove(file, settings.audit_keys, seen)
    if as_json:
        print_json({"intact": not proof.wrong, **vars(proof)})
    elif proof.manifest is None or proof.wrong:
        click.echo(f"{file}: {_line(proof.wrong)}")
    else:
        told = {name: proof.manifest[name] for name in ("exported_by", "started_at", "finished_at", "rows")}
        filters = ", ".join(f"{name} {value}" for name, value in proof.manifest["filters"].items())
        sealed_to = f"{proof.manifest['sealed_to']}, {proof.manifest['seal']}"
        told |= {"filters": filters or "none", "sealed to": sealed_to, "sha256": proof.sha256}
        click.echo(f"{file}: intact")
        for name, value in told.items():
            click.echo(f"  {name.replace('_', ' '):<11}  {_line(value)}")
    sys.exit(FOUND if proof.wrong else 0)


def _line(text: Any) -> str:
    """Text from a file, on one line, so that it cannot imitate another line of the output."""
    return " ".join(harmless(str(text)).split())

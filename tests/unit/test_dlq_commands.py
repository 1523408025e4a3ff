"""`ecom dlq` typed wrongly is misuse: exit 2, said in words, and nothing is opened."""

import json

import pytest

from ops.cli import main as cli
from ops.cli.console import harmless

QUEUE = "q.inventory.order-created"
ID = "0198b7a0-0000-7000-8000-000000000001"
NOBODY = "postgresql://a:b@127.0.0.1:1/c"


@pytest.fixture(autouse=True)
def nothing_is_there(monkeypatch):
    """Whatever is opened fails, and not with 2."""
    monkeypatch.setenv("AMQP_URI", "amqp://guest:guest@127.0.0.1:1//")
    for service in ("ORDER", "INVENTORY", "PAYMENT", "AUTH", "OPS"):
        monkeypatch.setenv(f"{service}_DATABASE_URL", NOBODY)


def ecom(*arguments):
    """The command line's exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["dlq", *arguments])
    return ended.value.code or 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["peek"],
        ["peek", QUEUE, "-n", "0"],
        ["peek", QUEUE, "--id", "no-uuid"],
        ["peek", QUEUE, "--since", "yesterday"],
        ["peek", QUEUE, "--since", "2026-01-14T10:30:00"],
        ["peek", QUEUE, "--since", "0001-01-01T00:00:00+14:00"],
        ["peek", QUEUE, "--until", "9" * 5000 + "d"],
        ["peek", QUEUE, "--until", "99999999d"],
        ["peek", QUEUE, "--error", "\udcff"],
        ["peek", "q.nope"],
        ["show", QUEUE],
        ["groups", "q.nope"],
        ["diagnose", "q.nope"],
        ["history", "no-uuid"],
        ["replay", QUEUE],
        ["replay", QUEUE, "--reason", "crash"],
        ["replay", QUEUE, "--all", "--max", "3"],
        ["replay", QUEUE, "--max", "0"],
        ["replay", QUEUE, "--all", "--yes", "--rate", "fast"],
        ["replay", QUEUE, "--all", "--yes", "--ramp", "1,x"],
        ["replay", QUEUE, "--all", "--yes", "--reason-text", "\udcff"],
        ["replay", "q.nope", "--all", "--yes"],
        ["discard", QUEUE, "--all", "--yes"],
        ["discard", QUEUE, "--to", "a", "--yes"],
        ["discard", QUEUE, "--to", "/", "--all", "--yes"],
        ["discard", "q.nope", "--to", "a", "--all", "--yes"],
        ["export", QUEUE],
        ["import", "/nowhere/at/all", "--yes"],
    ],
)
def test_misuse_is_2_and_says_what_is_wrong(arguments, capsys):
    assert ecom(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Error: " in said.err


@pytest.mark.parametrize("arguments", [["peek", QUEUE, "--id", ID], ["replay", QUEUE, "--id", ID, "--yes"], ["ls"]])
def test_well_formed_commands_are_tried(arguments, capsys):
    assert ecom(*arguments) == 3
    assert capsys.readouterr().err.startswith("ecom: the ")


def test_a_file_of_something_else_is_misuse_and_names_the_lines(tmp_path, capsys):
    file = tmp_path / "dead.jsonl"
    file.write_text(json.dumps({"queue": "q.nope.dlq"}) + "\nx\n")
    assert ecom("import", str(file), "--yes") == 2
    said = capsys.readouterr().err
    assert "line 1: not a line of an export" in said
    assert "line 2: not a line of an export" in said


def test_control_characters_are_made_harmless():
    assert harmless("grün \x1b[2J\x07\ud800\nnext") == "grün ?[2J??\nnext"

"""`ecom user`, from the command line into auth_service's database and out of it again as a token or none."""

import io
import json
import subprocess
import sys
from pathlib import Path

import eventlet
import pytest
from nameko.standalone.rpc import ServiceRpcProxy
from nameko.testing.services import worker_factory

from auth_service.service import AuthService
from ops.cli import main as cli
from ops.cli import users
from shared import auth, config
from shared.errors import Conflict, Unauthenticated
from tests.integration.support import container_of
from tests.terminal import at_a_terminal

ECOM = Path(sys.executable).with_name("ecom")
PASSWORD = "correct horse battery"
OLD, NEW = "old:" + "o" * 32, "new:" + "n" * 32


@pytest.fixture
def ecom(database, monkeypatch, capfd):
    """Runs a command with this standard input: its exit code, what it said, what it complained of."""

    def run(*words, password=None):
        monkeypatch.setattr(sys, "stdin", io.StringIO("" if password is None else f"{password}\n"))
        with pytest.raises(SystemExit) as ended:
            cli.main(["user", *words])
        said = capfd.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def sign_in(settings, database):
    """Asks the running auth_service over RPC for a token."""
    container = container_of(settings, AuthService)
    container.start()
    with ServiceRpcProxy("auth_service", {"AMQP_URI": settings.amqp_uri}, timeout=10) as service:
        yield (
            lambda name, password: (
                auth.verify(service.issue_token(name, password)["access_token"], settings.auth_keys).identity
            )
        )
    container.stop()


def test_a_user_signs_in_until_he_is_disabled_and_again_when_he_is_enabled(ecom, sign_in):
    code, said, _ = ecom("add", "ann", "--role", "operator", "--role", "auditor", password=PASSWORD)
    assert (code, said) == (0, "ann may sign in as operator, auditor\n")
    identity = sign_in("ann", PASSWORD)
    assert (identity.user_id, identity.roles) == ("ann", ("operator", "auditor"))
    assert ecom("disable", "ann")[:2] == (0, "ann is disabled\n")
    with pytest.raises(Unauthenticated, match="The name or the password is wrong"):
        sign_in("ann", PASSWORD)
    assert ecom("enable", "ann")[:2] == (0, "ann is enabled\n")
    assert sign_in("ann", PASSWORD).user_id == "ann"


def test_a_new_password_takes_the_place_of_the_old_one(ecom, sign_in):
    ecom("add", "ann", "--role", "customer", password=PASSWORD)
    assert ecom("password", "ann", password="another one altogether")[:2] == (0, "ann has a new password\n")
    assert sign_in("ann", "another one altogether").roles == ("customer",)
    with pytest.raises(Unauthenticated):
        sign_in("ann", PASSWORD)


def test_a_password_is_kept_as_an_argon2_hash_alone(ecom, database):
    ecom("add", "ann", "--role", "customer", password=PASSWORD)
    (row,) = database.rows("auth", "SELECT * FROM users")
    assert str(row["password_hash"]).startswith("$argon2id$")
    assert PASSWORD not in str(row)


def test_all_users_are_listed_and_no_hash_is_shown(ecom, database):
    ecom("add", "bob", "--role", "customer", password=PASSWORD)
    ecom("add", "ann", "--role", "admin", password=PASSWORD)
    ecom("disable", "bob")
    code, said, _ = ecom("ls", "--json")
    assert code == 0
    assert [(one["name"], one["roles"], one["disabled"]) for one in json.loads(said)["users"]] == [
        ("ann", ["admin"], False),
        ("bob", ["customer"], True),
    ]
    assert {tuple(one) for one in json.loads(said)["users"]} == {("name", "roles", "disabled", "created_at")}
    rows = [line.split() for line in ecom("ls")[1].splitlines() if line.startswith((" ann", " bob"))]
    assert [row[:3] for row in rows] == [["ann", "admin", rows[0][2]], ["bob", "customer", "disabled"]]


def test_a_name_is_given_once(ecom, sign_in):
    ecom("add", "ann", "--role", "customer", password=PASSWORD)
    code, said, complaint = ecom("add", "ann", "--role", "admin", password="another one altogether")
    assert (code, said) == (1, "")
    assert complaint == "ecom: there is a user ann already; `ecom user password ann` sets the password anew\n"
    assert sign_in("ann", PASSWORD).roles == ("customer",)


def test_of_two_who_add_a_name_at_once_one_is_refused(settings, database):
    slowly = "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NEW; END $$"
    database.run("auth", f"CREATE FUNCTION slowly() {slowly}")
    database.run("auth", "CREATE TRIGGER slowly AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION slowly()")
    try:
        made = [eventlet.spawn(users.add, settings, "ann", [role], PASSWORD) for role in ("customer", "admin")]
        outcomes = []
        for one in made:
            try:
                outcomes.append(one.wait()["roles"])
            except Conflict:
                outcomes.append(None)
    finally:
        database.run("auth", "DROP FUNCTION slowly CASCADE")
    assert outcomes.count(None) == 1
    (row,) = database.rows("auth", "SELECT roles FROM users")
    assert row["roles"] in outcomes


@pytest.mark.parametrize("words", [("disable", "nobody"), ("enable", "nobody"), ("password", "nobody")])
def test_a_user_who_is_not_there_is_a_finding(ecom, words):
    assert ecom(*words, password=PASSWORD) == (1, "", "ecom: there is no user nobody\n")


MISUSE = {
    "no role": (("add", "ann"), PASSWORD, "--role"),
    "an unknown role": (("add", "ann", "--role", "boss"), PASSWORD, "'boss' is no role; there are customer, operator"),
    "a space": (("add", "a b", "--role", "admin"), PASSWORD, "spaces"),
    "a line end": (("add", "a\nb", "--role", "admin"), PASSWORD, "control characters"),
    "bytes that are no text": (("disable", "a\udcff"), PASSWORD, "no text"),
    "a long name": (("add", "a" * 201, "--role", "admin"), PASSWORD, "1 to 200 characters"),
    "a letter of another alphabet": (
        ("add", "\u0430dmin", "--role", "admin"),
        PASSWORD,
        "other characters than a to z",
    ),
    "a capital": (("add", "Admin", "--role", "admin"), PASSWORD, "other characters than a to z"),
    "an option": (("add", "--role", "admin", "--", "-v"), PASSWORD, "other characters than a to z"),
    "an element of a page": (("add", "<b>x</b>", "--role", "admin"), PASSWORD, "other characters than a to z"),
    "a formula": (("add", "a;=1+1", "--role", "admin"), PASSWORD, "other characters than a to z"),
    "no name": (("add", "", "--role", "admin"), PASSWORD, "1 to 200 characters"),
    "the shell's name": (("add", "shell", "--role", "admin"), PASSWORD, "a part of the system"),
    "a part of the system": (("add", "system:expiry", "--role", "admin"), PASSWORD, "a part of the system"),
    "no password": (("add", "ann", "--role", "admin"), None, "no password on standard input"),
    "a long password": (("add", "ann", "--role", "admin"), "x" * 1025, "password: Must be 1 to 1024"),
    "a password with NUL": (
        ("add", "ann", "--role", "admin"),
        "a\0b",
        "password: Has a character that cannot be stored",
    ),
}


@pytest.mark.parametrize(("words", "password", "said"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_2_and_nobody_is_made(ecom, database, words, password, said):
    code, out, complaint = ecom(*words, password=password)
    assert (code, out) == (2, "")
    assert said in complaint
    assert database.rows("auth", "SELECT name FROM users") == []


def test_a_database_that_is_away_is_3(ecom, monkeypatch):
    monkeypatch.setenv("AUTH_DATABASE_URL", "postgresql://auth_app:x@127.0.0.1:1/auth")
    for words in (("ls",), ("add", "ann", "--role", "admin"), ("disable", "ann")):
        code, _, complaint = ecom(*words, password=PASSWORD)
        assert code == 3
        assert complaint.startswith("ecom: the database of auth cannot be used: ")
        assert complaint.count("\n") == 1


@pytest.fixture
def production(monkeypatch):
    """The settings of production."""
    monkeypatch.setenv("ECOM_ENV", "production")
    monkeypatch.setenv("AUTH_KEYS", NEW)


def test_in_production_a_password_has_at_least_12_characters(ecom, production, database):
    code, _, complaint = ecom("add", "ann", "--role", "admin", password="elevenchars")
    assert code == 2
    assert "in production a password has at least 12 characters" in complaint
    assert ecom("add", "ann", "--role", "admin", password="twelve chars")[0] == 0
    assert ecom("password", "ann", password="elevenchars")[0] == 2


def test_in_development_a_short_password_will_do(ecom):
    assert ecom("add", "ann", "--role", "admin", password="x")[0] == 0


def test_the_command_itself_reads_a_password_from_a_pipe_and_says_nothing_else(production, database):
    ended = subprocess.run(
        [ECOM, "user", "add", "ann", "--role", "customer", "--json"],
        input=f"{PASSWORD}\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(ended.stdout)["name"] == "ann"
    assert ended.stderr == ""


def on_a_terminal(*typed):
    """`ecom user add ann`, each word typed when it is asked for: the exit code and all that the terminal showed."""
    command = [ECOM, "user", "add", "ann", "--role", "customer"]
    return at_a_terminal(command, (": ", ":"), typed, start_new_session=True)


def test_on_a_terminal_the_password_is_typed_twice_and_never_shown(production, database):
    code, shown = on_a_terminal(f"{PASSWORD}\n", f"{PASSWORD}\n")
    assert code == 0
    assert shown.split("\r\n") == ["Password: ", "Once more: ", "ann may sign in as customer", ""]


def test_a_slip_of_the_hand_is_noticed_and_giving_up_makes_nobody(production, database):
    code, shown = on_a_terminal(f"{PASSWORD}\n", "correct house battery\n", "\x04")
    assert code == 1
    assert "do not match" in shown
    assert database.rows("auth", "SELECT name FROM users") == []


def auth_service(tmp_path, keys):
    """auth_service with its keys in a file."""
    file = tmp_path / "auth_keys"
    file.write_text(keys + "\n")
    return worker_factory(AuthService, settings=config.read({"ECOM_ENV": "development", "AUTH_KEYS_FILE": str(file)}))


def test_a_token_of_the_older_key_is_active_as_long_as_that_key_is_listed(tmp_path):
    issued = {}
    for keys in (OLD, f"{OLD},{NEW}", f"{NEW},{OLD}"):  # the three steps of a rotation
        issued[keys] = auth_service(tmp_path, keys).issue_mock_token("ann", ["customer"])["access_token"]
        assert all(auth_service(tmp_path, keys).introspect(token)["active"] for token in issued.values())
    after = auth_service(tmp_path, NEW)
    assert [after.introspect(token)["active"] for token in issued.values()] == [False, False, True]

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
    fields = ("name", "roles", "disabled", "created_at", "user_id", "email", "kind")
    assert {tuple(one) for one in json.loads(said)["users"]} == {fields}
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
        made = [
            eventlet.spawn(users.add, settings, "op@host", "ann", [role], PASSWORD) for role in ("customer", "admin")
        ]
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


@pytest.mark.parametrize(
    "words",
    [
        ("disable", "nobody"),
        ("enable", "nobody"),
        ("password", "nobody"),
        ("roles", "nobody", "--role", "admin"),
        ("sessions", "nobody"),
        ("sessions", "nobody", "--end"),
    ],
)
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
    "a service": (("add", "service:till", "--role", "customer"), PASSWORD, "a part of the system"),
    "the role of services": (("add", "ann", "--role", "ROLE_SERVICE"), PASSWORD, "belongs to services"),
    "no address": (("add", "ann", "--role", "admin", "--email", "ann"), PASSWORD, "'ann' is no address"),
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
    assert "password: Must be 12 to 1,024 characters long." in complaint
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


def left_behind(database):
    """The records, the revocations and the events of the commands so far."""
    records = database.rows("auth", "SELECT event, user_id, actor_id, details FROM auth_events ORDER BY id")
    revoked = database.rows("auth", "SELECT user_id, version FROM revocations ORDER BY id")
    events = [json.loads(row["body"]) for row in database.rows("auth", "SELECT body FROM outbox ORDER BY id")]
    return [tuple(row.values()) for row in records], [tuple(row.values()) for row in revoked], events


def test_each_command_leaves_a_record_of_its_operator_an_event_and_what_gateways_must_refuse(ecom, database):
    operator = ("--actor", "olga@till")
    ecom("add", "ann", "--role", "customer", "--email", "Ann@Example.com", *operator, password=PASSWORD)
    ecom("roles", "ann@example.com", "--role", "ROLE_AUDITOR", "--reason", "promoted", *operator)
    ecom("password", "ann", *operator, password="another one altogether")
    ecom("disable", "ann", "--reason", "left", *operator)
    ecom("disable", "ann", "--reason", "again", *operator)
    ecom("enable", "ann", *operator)
    ecom("sessions", "ann", "--end", *operator)

    records, revoked, events = left_behind(database)
    assert records == [
        ("created", "ann", "olga@till", {"roles": ["customer"], "via": "cli"}),
        ("roles_changed", "ann", "olga@till", {"roles": ["auditor"], "before": ["customer"], "reason": "promoted"}),
        ("password_set", "ann", "olga@till", {}),
        ("disabled", "ann", "olga@till", {"reason": "left"}),
        ("enabled", "ann", "olga@till", {"reason": ""}),
        ("sessions_ended", "ann", "olga@till", {}),
    ]
    assert revoked == [("ann", version) for version in (2, 3, 4, 5)]
    assert [(event["type"], event["payload"]) for event in events] == [
        ("user.created", {"user_id": "ann", "roles": ["customer"], "via": "cli"}),
        ("user.role_changed", {"user_id": "ann", "roles": ["auditor"], "version": 2}),
        ("user.disabled", {"user_id": "ann"}),
        ("user.enabled", {"user_id": "ann"}),
    ]
    assert {event["identity"]["user_id"] for event in events} == {"system:ecom-user"}
    (ann,) = database.rows("auth", "SELECT email, password_at IS NOT NULL AS dated FROM users")
    assert (ann["email"], ann["dated"]) == ("ann@example.com", True)


def test_without_an_actor_the_login_and_host_are_recorded(ecom, database, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "olga")
    ecom("add", "ann", "--role", "customer", password=PASSWORD)
    ((_, _, actor, _),) = left_behind(database)[0]
    assert actor.startswith("olga@")


def test_an_address_is_given_once(ecom, database):
    ecom("add", "ann", "--role", "customer", "--email", "ann@example.com", password=PASSWORD)
    taken = ecom("add", "bob", "--role", "customer", "--email", "ANN@example.com", password=PASSWORD)
    assert taken == (1, "", "ecom: another user has the address ann@example.com\n")
    assert len(left_behind(database)[0]) == len(left_behind(database)[2]) == 1


def test_the_last_admin_stays_until_there_is_another(ecom, database):
    ecom("add", "ann", "--role", "admin", password=PASSWORD)
    for words in (("disable", "ann"), ("roles", "ann", "--role", "auditor")):
        code, said, complaint = ecom(*words)
        assert (code, said) == (1, "")
        assert "This is the last admin who may sign in" in complaint
    ecom("add", "bob", "--role", "admin", password=PASSWORD)
    assert ecom("roles", "ann", "--role", "auditor")[:2] == (0, "ann may sign in as auditor\n")


def test_the_sessions_of_a_user_are_listed_and_ended(ecom, database):
    ecom("add", "ann", "--role", "customer", password=PASSWORD)
    opened = (
        "INSERT INTO sessions (session_id, user_id, kind, kid, client, network, expires_at, ends_at)"
        " VALUES (gen_random_uuid(), 'ann', 'api', 'k', 'curl', '203.0.113.7', :until, :until)"
    )
    for until in ("2999-01-01", "2999-01-01", "2001-01-01"):  # the last one is over
        database.run("auth", opened, until=until)
    listed = json.loads(ecom("sessions", "ann", "--json")[1])["sessions"]
    assert [(one["kind"], one["client"], one["network"]) for one in listed] == [("api", "curl", "203.0.113.7")] * 2
    assert ecom("sessions", "ann")[1].count("203.0.113.7") == 2
    assert ecom("sessions", "ann", "--end")[:2] == (0, "ann has no session any more; 2 were open\n")
    assert ecom("sessions", "ann")[:2] == (0, "no session is open\n")


def test_users_are_listed_by_role_and_address_and_a_limit_is_said(ecom, database):
    ecom("add", "ann", "--role", "customer", "--email", "ann@example.com", password=PASSWORD)
    ecom("add", "bob", "--role", "customer", "--role", "auditor", password=PASSWORD)

    def names(*words):
        return [one["name"] for one in json.loads(ecom("ls", "--json", *words)[1])["users"]]

    assert names("--role", "ROLE_AUDITOR") == ["bob"]
    assert names("--email", "Ann@example.com") == names("--limit", "1") == ["ann"]
    code, _, complaint = ecom("ls", "--limit", "1")
    assert code == 0
    assert complaint.startswith("and more: --limit")
    assert ecom("ls")[2] == ""


def test_a_name_that_is_an_address_of_somebody_else_is_no_answer(ecom, database):
    ecom("add", "ann@example.com", "--role", "customer", password=PASSWORD)
    ecom("add", "bob", "--role", "customer", "--email", "ann@example.com", password=PASSWORD)
    code, _, complaint = ecom("disable", "ann@example.com")
    assert code == 1
    assert "give the user_id" in complaint


def test_the_keys_of_a_service_are_made_listed_and_revoked(ecom, sign_in, database):
    operator = ("--actor", "olga@till")
    made = json.loads(ecom("keys", "add", "till", "--role", "ROLE_SERVICE", "--days", "30", "--json", *operator)[1])
    assert made["key"].startswith(f"ek_{made['key_id']}_")
    listed = json.loads(ecom("keys", "ls", "till", "--json")[1])["keys"]
    assert [(one["key_id"], one["roles"], one["created_by"], one["revoked_at"]) for one in listed] == [
        (made["key_id"], ["service"], "olga@till", None)
    ]
    assert ecom("keys", "revoke", "till", made["key_id"], *operator)[0] == 0
    assert json.loads(ecom("keys", "ls", "till", "--json")[1])["keys"][0]["revoked_at"]
    records, revoked, events = left_behind(database)
    assert [(event, user_id, actor) for event, user_id, actor, _ in records] == [
        ("key_created", "service:till", "olga@till"),
        ("key_revoked", "service:till", "olga@till"),
    ]
    assert revoked == [("service:till", 2)]
    assert [(event["type"], event["payload"]["via"]) for event in events] == [("user.created", "cli")]
    assert made["key"].split("_", 2)[2] not in str(database.rows("auth", "SELECT * FROM api_keys"))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("add", "Till", "--role", "service"), 2, "Must match"),
        (("add", "till", "--role", "boss"), 2, "'boss' is no role"),
        (("add", "till", "--role", "service", "--days", "400"), 2, "400"),
        (("ls", "till"), 1, "there is no service till"),
        (("revoke", "till", "0" * 32), 1, "no such key"),
    ],
)
def test_what_is_wrong_with_a_key_is_said(ecom, database, words, code, said):
    ended, out, complaint = ecom("keys", *words)
    assert (ended, out) == (code, "")
    assert said in complaint
    assert database.rows("auth", "SELECT * FROM api_keys") == []


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

"""Production refuses every unsafe setting at once, and accepts good ones. An exception is allowed by name only."""

import json
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from ops.cli import main as cli
from shared import config, parsers, unsafe
from shared.edge import runner
from shared.errors import ConfigurationFault

ROOT = Path(__file__).resolve().parents[2]


PROVIDER = '[{{"name": "google", "issuer": "https://i.example", "client_id": "c", "client_secret": "{}"}}]'


def secret() -> str:
    return secrets.token_hex(32)


def good(role: str | None = None) -> dict[str, str]:
    """What a good production has: TLS to other hosts, a user, a database and a password for each, real limits."""
    shape = {
        "AUTH_KEYS": "k1:{}",
        "AMQP_URI": "amqp://ecom-{role}:{}@localhost:5672/ecom",
        "AMQP_ADMIN_URI": "amqp://administrator:{}@localhost:5672/ecom",
        "DATABASE_ADMIN_URL": "postgresql://postgres:{}@db.example/postgres?sslmode=verify-full",
        "SMTP_URL": "smtp://shop:{}@mail.example",
        "OIDC_PROVIDERS": PROVIDER,
    }
    environ = {"ECOM_ENV": "production", "PAYMENT_PROVIDER": "acme", "PAYMENT_METHODS": "card"}
    environ |= {"MAIL_FROM": "Shop <shop@shop.example>", "ACCOUNT_URL": "https://shop.example/account"}
    for row in config.TABLE:
        if row.attribute == "database_urls":
            environ[row.variable] = f"postgresql://{row.key}_app:{secret()}@db.example/{row.key}?sslmode=verify-full"
        elif row.attribute == "amqp_uris" and row.key != "shell":  # which production refuses
            environ[row.variable] = shape["AMQP_URI"].format(secret(), role=row.key)
        elif row.secret and row.attribute != "amqp_uris":
            environ[row.variable] = shape.get(row.variable, "{}").format(secret(), role=role)
    return environ


@pytest.fixture
def environ(monkeypatch):
    for name in config.BY_VARIABLE:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    for name, value in good().items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def found(role=None, **changed):
    environ = good(role) | changed
    return unsafe.unsafe(config.read(environ, role), role, environ)


@pytest.mark.parametrize("role", [None, *config.ROLES])
def test_a_good_configuration_is_accepted(role):
    assert found(role) == []


KEY = secret()
FAR = f"postgresql://app:{KEY}@db.example/x"

BAD = {
    "the development key": ({"AUTH_KEYS": config.DEVELOPMENT_KEY}, "AUTH_KEYS holds a secret that is published"),
    "the development key under another name": (
        {"AUTH_KEYS": "prod:development-only-secret-never-in-production"},
        "AUTH_KEYS holds a secret that is published",
    ),
    "a published key that is not the first": (
        {"AUTH_KEYS": f"k1:{KEY},old:{config.DEVELOPMENT_AUDIT_KEY}"},
        "AUTH_KEYS holds a secret that is published",
    ),
    "a published key with something after it": (
        {"AUDIT_KEY": config.DEVELOPMENT_AUDIT_KEY + "-2"},
        "AUDIT_KEY holds a secret that is published",
    ),
    "the key of the other purpose": (
        {"AUDIT_KEY": "development-only-secret-never-in-production"},
        "AUDIT_KEY holds a secret that is published",
    ),
    "a password of the demonstration": (
        {"ORDER_DATABASE_URL": "postgresql://order_app:demo-customer-demo@localhost/order"},
        "ORDER_DATABASE_URL holds a secret that is published",
    ),
    "one key for two purposes": (
        {"AUTH_KEYS": f"k1:{KEY}", "AUDIT_KEY": KEY},
        "AUTH_KEYS and AUDIT_KEY hold the same secret",
    ),
    "one key under two names": ({"AUTH_KEYS": f"k1:{KEY},k2:{KEY}"}, "AUTH_KEYS holds a secret twice"),
    "one password for two databases": (
        {
            "ORDER_DATABASE_URL": f"postgresql://order_app:{KEY}@localhost/order",
            "PAYMENT_DATABASE_URL": f"postgresql://payment_app:{KEY}@localhost/payment",
        },
        "ORDER_DATABASE_URL and PAYMENT_DATABASE_URL hold the same secret",
    ),
    "no mails": ({"SMTP_URL": ""}, "SMTP_URL names no mail server: nobody gets a mail"),
    "mails as files": ({"SMTP_URL": "file:/var/mails"}, "SMTP_URL names no mail server: nobody gets a mail"),
    "a mail server without a password": ({"SMTP_URL": "smtp://mail.example"}, "SMTP_URL has no password"),
    "mails of nobody": ({"MAIL_FROM": ""}, "MAIL_FROM is not set"),
    "mails that lead nowhere": ({"ACCOUNT_URL": ""}, "ACCOUNT_URL is not set"),
    "mails with links without TLS": ({"ACCOUNT_URL": "http://shop.example"}, "ACCOUNT_URL has no TLS"),
    "a short password of the mail server": (
        {"SMTP_URL": "smtp://shop:short@mail.example"},
        "SMTP_URL holds a secret of under 16 characters",
    ),
    "a short secret of a provider": (
        {"OIDC_PROVIDERS": PROVIDER.replace("{}", "short").replace("{{", "{").replace("}}", "}")},
        "OIDC_PROVIDERS holds a secret of under 16 characters",
    ),
    "one character repeated": ({"AUTH_KEYS": "k1:" + "a" * 40}, "under 8 different characters"),
    "a part repeated": ({"AUDIT_KEY": "correct-horse-9" * 3}, "repeats a part of itself"),
    "a short password": ({"READER_PASSWORD": "a"}, "READER_PASSWORD holds a secret of under 16 characters"),
    "the user guest": ({"AMQP_URI": f"amqp://guest:{KEY}@localhost//"}, "AMQP_URI names the user guest"),
    "the broker's default": (
        {"AMQP_URI": "amqp://guest:guest@127.0.0.1:5672//"},
        "AMQP_URI holds a secret that is published",
    ),
    "the superuser of the databases": (
        {"ORDER_DATABASE_URL": f"postgresql://postgres:{KEY}@localhost/order"},
        "ORDER_DATABASE_URL names the user postgres",
    ),
    "a shell": ({"SHELL_AMQP_URI": f"amqp://ecom-shell:{KEY}@localhost/ecom"}, "a shell may publish every event"),
    "a broker without a password": ({"AMQP_URI": "amqp://ecom@localhost/ecom"}, "AMQP_URI has no password"),
    "a database without a password": (
        {"AUTH_DATABASE_URL": "postgresql://auth_app@localhost/auth"},
        "AUTH_DATABASE_URL has no password",
    ),
    "a broker on another host without TLS": (
        {"AMQP_URI": f"amqp://ecom:{KEY}@broker.example/ecom"},
        "AMQP_URI goes to broker.example without TLS",
    ),
    "a database on another host without TLS": ({"AUTH_DATABASE_URL": FAR}, "goes to db.example without TLS"),
    "a database whose certificate is not verified": (
        {"AUTH_DATABASE_URL": f"{FAR}?sslmode=require"},
        "AUTH_DATABASE_URL goes to db.example without TLS",
    ),
    "a database without TLS by name": ({"AUTH_DATABASE_URL": f"{FAR}?sslmode=disable"}, "without TLS"),
    "two services in one database": (
        {
            "ORDER_DATABASE_URL": f"postgresql://order_app:{KEY}@localhost/shop",
            "PAYMENT_DATABASE_URL": f"postgresql://payment_app:{secret()}@localhost/shop",
        },
        "ORDER_DATABASE_URL and PAYMENT_DATABASE_URL name the same database",
    ),
    "one database user for two services": (
        {
            "ORDER_DATABASE_URL": f"postgresql://app:{KEY}@localhost/order",
            "PAYMENT_DATABASE_URL": f"postgresql://app:{secret()}@localhost/payment",
        },
        "ORDER_DATABASE_URL and PAYMENT_DATABASE_URL name the same user",
    ),
    "a page without TLS": ({"CORS_ORIGINS": "https://shop.example,http://shop.example"}, "lists http://shop.example"),
    "a page of this machine without TLS": ({"CORS_ORIGINS": "http://localhost:3000"}, "lists http://localhost:3000"),
    "a proxy that may be anybody": ({"TRUSTED_PROXIES": "0.0.0.0/0"}, "TRUSTED_PROXIES lists 0.0.0.0/0"),
    "tokens for anybody": ({"AUTH_MOCK": "1"}, "AUTH_MOCK issues tokens to anyone"),
    "tokens for anybody on this machine": ({"AUTH_MOCK": "loopback"}, "AUTH_MOCK issues tokens to anyone"),
    "a provider on another host without TLS": (
        {"PAYMENT_PROVIDER": "http", "PAYMENT_PROVIDER_URL": "http://pay.example"},
        "PAYMENT_PROVIDER_URL goes to pay.example without TLS",
    ),
    "a provider that moves no money": ({"PAYMENT_PROVIDER": "mock"}, "PAYMENT_PROVIDER is mock"),
}


@pytest.mark.parametrize(("changed", "said"), BAD.values(), ids=BAD)
def test_an_unsafe_setting_is_named(changed, said):
    assert any(said in sentence for sentence in found(**changed))
    hidden = [part for text in changed.values() for part in re.split(r"[:@,/]", text) if len(part) > 30]
    assert not any(part in sentence for part in hidden for sentence in found(**changed))


def test_the_place_of_a_database_is_enough_for_who_reads_it_as_the_reader():
    places = {f"{name}_DATABASE_URL": f"postgresql://localhost/{name.lower()}" for name in ("ORDER", "PAYMENT")}
    assert found("ops", **places) == []
    assert "ORDER_DATABASE_URL has no password" in found("ops", **places, READER_PASSWORD="")
    assert "ORDER_DATABASE_URL has no password" in found("order", **places)


def test_a_broker_user_may_stand_in_two_settings():
    """An operator's commands connect as ops, in the container of ops."""
    uri = good("ops")["AMQP_URI"]
    assert found("operator", AMQP_URI=uri, OPS_AMQP_URI=uri) == []
    other = uri.replace("ecom-ops", "ecom-order")
    assert found("operator", AMQP_URI=other, OPS_AMQP_URI=uri) == ["AMQP_URI and OPS_AMQP_URI hold the same secret"]


def test_every_secret_of_the_table_is_looked_at():
    """A secret setting that is added later cannot be forgotten."""
    for row in config.TABLE:
        if not row.secret:
            continue
        shape = good().get(row.variable) or f"amqp://ecom-shell:{secret()}@localhost/ecom"
        ours = next(iter(row.secret.inside(row.parse(shape))))
        said = found(**{row.variable: shape.replace(ours, config.DEVELOPMENT_AUDIT_KEY)})
        assert f"{row.variable} holds a secret that is published with this program" in said
        weak = found(**{row.variable: shape.replace(ours, "a" * 40)})
        assert any(sentence.startswith(f"{row.variable} holds a secret of under 8") for sentence in weak)


def test_every_variable_that_sounds_secret_is_a_secret():
    sounding = re.compile(r"KEY|PASSWORD|SECRET|TOKEN|_URL$|URI$")
    # The key of a TLS_KEY_FILE is in no setting: its path is. The URL of an HTTP server may hold no password.
    rows = [row for row in config.TABLE if row.parse not in (parsers.key_file, parsers.http_url)]
    assert [row.variable for row in rows if sounding.search(row.variable) and not row.secret] == []


def test_every_limit_of_the_table_must_be_set():
    limits = [row for row in config.TABLE if "any number" in row.means]
    assert {row.variable for row in limits} >= {"RATE_USER_PER_MIN", "RATE_ADDRESS_PER_MIN"}
    for row in limits:
        assert found(**{row.variable: "0"}) == [f"{row.variable} is 0, which means no limit"]
        assert found(**{row.variable: "5"}) == []


def test_passwords_in_this_repository_are_refused():
    """Whoever copies a URL or a key from the documentation or from a test has a secret that everybody knows."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    written = re.compile(r"://[\w-]+:([\w.-]+)@|(?:SECRET|KEY|PASSWORD) = \"([^\"]+)\"")
    known = set()
    for name in listed:
        if name.endswith((".py", ".md", ".yml", ".sh", ".mjs", ".ts", ".java", ".cfg")):
            for match in written.finditer((ROOT / name).read_text(encoding="utf-8")):
                known.add(match[1] or match[2].rpartition(":")[2])
    assert len(known) > 10
    assert [one for one in known if not any("READER_PASSWORD" in said for said in found(READER_PASSWORD=one))] == []


def test_a_secret_that_every_user_of_the_machine_can_read_is_refused(tmp_path):
    file = tmp_path / "password"
    file.write_text(secret())
    environ = good()
    del environ["READER_PASSWORD"]
    environ["READER_PASSWORD_FILE"] = str(file)
    for mode, refused in ((0o666, True), (0o644, True), (0o640, False), (0o600, False), (0o400, False)):
        file.chmod(mode)
        said = unsafe.unsafe(config.read(environ), None, environ)
        assert any("READER_PASSWORD_FILE: every user" in sentence for sentence in said) is refused


@pytest.mark.parametrize(
    ("role", "missing"),
    [
        ("gateway", {"AMQP_URI", "AUTH_KEYS", "PAYMENT_METHODS"}),
        ("auth", {"AMQP_URI", "AUTH_KEYS", "AUTH_DATABASE_URL"}),
        ("inventory", {"AMQP_URI", "AUDIT_KEY", "INVENTORY_DATABASE_URL"}),
        ("payment", {"AMQP_URI", "PAYMENT_PROVIDER", "PAYMENT_DATABASE_URL"}),
    ],
)
def test_a_service_of_production_says_at_once_what_is_not_set(role, missing):
    with pytest.raises(ConfigurationFault) as refused:
        unsafe.read_safe(role, {"ECOM_ENV": "production"})
    assert set(re.findall(r"(\w+) is not set", str(refused.value))) == missing


def test_the_url_of_the_provider_is_needed_where_it_is_called_over_http():
    for url in ("https://pay.example/v1", "http://127.0.0.1:8080", "http://[::1]:8080"):
        assert found("payment", PAYMENT_PROVIDER="http", PAYMENT_PROVIDER_URL=url) == []
    assert found("payment", PAYMENT_PROVIDER="http") == ["PAYMENT_PROVIDER_URL is not set"]


def test_an_exception_needs_a_setting_of_its_name_and_is_said_at_the_start():
    for name, bad, role in (
        ("ALLOW_MOCK_PAYMENTS", {"PAYMENT_PROVIDER": "mock"}, "payment"),
        ("ALLOW_PLAIN_INSIDE", {"PAYMENT_DATABASE_URL": FAR}, "payment"),
        ("ALLOW_NO_MAIL", {"SMTP_URL": "file:mails"}, "auth"),
    ):
        environ = good(role) | bad | {name: "1"}
        (sentence,) = unsafe.allowed(unsafe.read_safe(role, environ), role, environ)
        assert sentence.endswith(f"; {name}=1 allows it")
        with pytest.raises(ConfigurationFault):
            unsafe.read_safe(role, environ | {name: "0"})


def test_a_service_logs_what_is_allowed_when_it_starts(environ, monkeypatch, caplog):
    environ.setenv("AMQP_URI", good("payment")["AMQP_URI"])
    environ.setenv("PAYMENT_PROVIDER", "mock")
    environ.setenv("ALLOW_MOCK_PAYMENTS", "1")
    monkeypatch.setattr(runner.logs, "configure", lambda *level, **names: None)
    monkeypatch.setattr(runner, "service_class", lambda service: sys.exit())
    with pytest.raises(SystemExit):
        runner.run("payment")
    assert [record.getMessage() for record in caplog.records] == [
        "PAYMENT_PROVIDER is mock: orders are paid without money; ALLOW_MOCK_PAYMENTS=1 allows it"
    ]


def test_no_exception_is_made_for_anything_else():
    every = {row.variable: "1" for row in config.TABLE if row.variable.startswith("ALLOW_")}
    assert len(found(AUTH_KEYS=config.DEVELOPMENT_KEY, AUTH_MOCK="1", RATE_USER_PER_MIN="0", **every)) == 3


def test_a_private_key_that_every_user_of_the_machine_can_read_is_refused(tmp_path):
    for variable, other in (("TLS_KEY_FILE", "TLS_CERT_FILE"), ("GATEWAY_TLS_KEY_FILE", "GATEWAY_TLS_CERT_FILE")):
        file = tmp_path / variable
        file.write_text("")
        for mode, refused in ((0o644, True), (0o640, False)):
            file.chmod(mode)
            said = found(**{variable: str(file), other: str(file)})
            assert [sentence.partition(":")[0] for sentence in said] == [variable] * refused


def test_development_refuses_nothing_of_this():
    unsafe.read_safe("gateway", {"ECOM_ENV": "development"})


def test_without_a_word_about_it_this_is_production():
    assert config.read({}).production
    with pytest.raises(ConfigurationFault, match="AUTH_KEYS is not set"):
        unsafe.read_safe("gateway", {})


@pytest.mark.parametrize("service", config.SERVICES)
def test_a_service_refuses_to_start_with_all_faults_at_once(service, monkeypatch):
    for name in config.BY_VARIABLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AMQP_URI", "amqp://guest:guest@broker.example//")
    with pytest.raises(ConfigurationFault) as refused:
        runner.run(service)
    assert "AMQP_URI names the user guest" in str(refused.value)
    assert "AMQP_URI goes to broker.example without TLS" in str(refused.value)


def ecom(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments])
    return ended.value.code


def test_config_check_prints_the_list_and_exits_with_one(environ, capsys):
    assert ecom("config", "--check") == 0
    assert capsys.readouterr().out == "production accepts these settings\n"
    assert ecom("config", "--check", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"refused": []}
    environ.setenv("AUTH_MOCK", "1")
    environ.setenv("RATE_USER_PER_MIN", "0")
    lines = ["RATE_USER_PER_MIN is 0, which means no limit", "AUTH_MOCK issues tokens to anyone"]
    assert ecom("config", "--check") == 1
    assert capsys.readouterr().out.splitlines() == lines
    assert ecom("config", "--check", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {"refused": lines}
    environ.setenv("AMQP_URI", good("order")["AMQP_URI"])
    assert ecom("config", "--check", "--role", "order") == 0


def test_a_command_refuses_what_production_refuses(environ, capsys):
    environ.setenv("AMQP_URI", "amqp://guest:guest@localhost//")
    assert ecom("queues", "ls") == 3
    assert "production refuses these settings: AMQP_URI holds" in capsys.readouterr().err

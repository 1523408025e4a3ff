"""The TLS of a client: the server's certificate and host name are always verified."""

from __future__ import annotations

import ssl

from topology.broker_uri import TlsFiles


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """A context for one connection. Its files are read now, so that a renewed one serves from the next connection on.

    Raises OSError (of which ssl.SSLError is one) when a file is missing, or certificate and key do not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it verifies certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # In a renegotiation a write would have to read. Only one greenlet reads from a connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if files.ca:
        context.load_verify_locations(files.ca)
    else:
        context.load_default_certs()
    if files.certificate:
        context.load_cert_chain(files.certificate, files.key or None)
    return context

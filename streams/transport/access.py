"""Access: which servers a broker URL names, and how a connection proves itself to them.

All of it comes from the broker URLs and from Faust's `broker_credentials`; a setting that cannot be
used is a CredentialsError before anything is sent. With TLS asked for, nothing but TLS is spoken.
"""

import random
import ssl
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from faust.auth import SASLCredentials, SSLCredentials
from faust.types.auth import CredentialsT, SASLMechanism
from yarl import URL

from streams.transport.errors import CredentialsError

TLS_SCHEMES = frozenset({"tls", "nats+tls"})


@dataclass(frozen=True, slots=True)
class Access:
    """The servers in the order they are tried, and what is shown to each."""

    servers: list[str]
    tls: ssl.SSLContext | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    creds: str | None = None
    nkey: str | None = None

    def options(self) -> dict[str, Any]:
        """Return what the NATS client is to be connected with."""
        return {
            "servers": self.servers,
            "dont_randomize": True,  # a new attempt then goes to the next server
            "tls": self.tls,
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "user_credentials": self.creds,
            "nkeys_seed": self.nkey,
        }


def read_access(urls: list[URL], credentials: CredentialsT | None = None) -> Access:
    """Read broker URLs and Faust's credentials; CredentialsError when they make no sense.

    A URL is `nats://` or, for TLS, `tls://` or `nats+tls://`; it may hold `user:password@` or
    `token@`, and the settings `ca`, `cert` and `key` (PEM files), `creds` and `nkey` (files too).
    """
    settings: dict[str, str] = {}
    for url in urls:
        settings.update(url.query)
    named = next((url for url in urls if url.user), None)
    user = named.user if named else None
    password = named.password if named else None
    token = user if password is None else None
    context = _context(settings, wanted=any(url.scheme in TLS_SCHEMES for url in urls))
    if isinstance(credentials, SSLCredentials):
        context = credentials.context
    elif isinstance(credentials, SASLCredentials) and credentials.mechanism is SASLMechanism.PLAIN:
        user, password, token = credentials.username, credentials.password, None
        context = credentials.ssl_context or context
    elif credentials is not None:
        raise CredentialsError(
            "broker_credentials must be SSLCredentials or SASLCredentials with PLAIN"
        )
    servers = [server_address(url, tls=context is not None) for url in urls]
    random.shuffle(servers)
    return Access(
        servers=servers,
        tls=context,
        user=None if token else user,
        password=password,
        token=token,
        creds=_signing(settings, "creds"),
        nkey=_signing(settings, "nkey"),
    )


def server_address(url: URL, *, tls: bool = False) -> str:
    """Return the address of a server, without the secrets of its URL."""
    scheme = "tls" if tls else "nats"
    return f"{scheme}://{url.host_subcomponent or 'localhost'}:{url.explicit_port or 4222}"


def _context(settings: dict[str, str], *, wanted: bool) -> ssl.SSLContext | None:
    authority, certificate, key = (settings.get(name) for name in ("ca", "cert", "key"))
    if not (wanted or authority or certificate):
        return None
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise CredentialsError(
            f"ca={authority} cert={certificate} key={key} cannot be used: {error}"
        ) from error
    return context


def _signing(settings: dict[str, str], name: str) -> str | None:
    path = settings.get(name)
    if path is None:
        return None
    if find_spec("nkeys") is None:
        raise CredentialsError(f"{name}= needs the package nkeys: install nats-py[nkeys]")
    if not Path(path).is_file():
        raise CredentialsError(f"{name}={path} is no file: name the one that NATS gave you")
    return path

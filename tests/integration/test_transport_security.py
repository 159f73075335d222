"""Who may speak to NATS, and over what: TLS, its authorities, client certificates, passwords.

Every refusal is one sentence, at once: waiting would not help.
"""

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import faust
import pytest
from faust.auth import GSSAPICredentials, SASLCredentials, SSLCredentials
from yarl import URL

from infra.stack import brokers, probes
from infra.stack.accounts import service_account
from streams.transport import Connection
from streams.transport.errors import AccessRefusedError, CredentialsError, TransportError
from tests.fixtures.services import BrokerServer, free_port, own_folder
from tests.fixtures.tls import write_certificate

AT_ONCE_S = 5.0
USER, PASSWORD, TOKEN = "worker", "pass:w/rd@ ó", "tok-en"


@dataclass(frozen=True, slots=True)
class Guarded:
    """A server that asks for proof, its address without a scheme, and the files of its trust."""

    server: BrokerServer
    address: str
    certificate: Path
    key: Path


def start_guarded(parent: Path, name: str, demands: str, *, tls: bool) -> Guarded:
    """Start a NATS server that demands what the lines of `demands` say."""
    account = service_account()
    home = own_folder(parent, name, account)
    certificate, key = home / "certificate.pem", home / "key.pem"
    write_certificate(certificate, key)
    port, monitoring_port = free_port(), free_port()
    text = brokers.nats_config(
        port=port, monitoring_port=monitoring_port, store=home / "store", sync_interval="2m"
    )
    if tls:
        text += f'tls {{ cert_file: "{certificate}", key_file: "{key}"{demands} }}\n'
    else:
        text += demands
    config = home / "nats.conf"
    config.write_text(text)
    for path in (config, certificate, key):
        if account is not None:
            account.give(path)
    url = f"http://127.0.0.1:{monitoring_port}"
    server = BrokerServer(
        name=name,
        command=brokers.nats_command(config),
        folder=home,
        probe=probes.http(f"{url}/healthz"),
        account=account,
    )
    server.start()
    return Guarded(server, f"127.0.0.1:{port}", certificate, key)


@pytest.fixture(scope="module")
def secured(module_folder: Path) -> Iterator[Guarded]:
    """A server that speaks TLS only."""
    guarded = start_guarded(module_folder, "tls", "", tls=True)
    yield guarded
    guarded.server.stop()


async def sends(url: URL | str, credentials: Any = None) -> int:
    """Send a message as a Faust app on `url`; return its offset."""
    app = faust.App(
        f"app-{uuid4().hex[:8]}",
        broker=str(url),
        broker_credentials=credentials,
        web_enabled=False,
    )
    producer = app.producer
    await producer.start()
    try:
        async with asyncio.timeout(AT_ONCE_S):
            topic = f"t{uuid4().hex[:8]}"
            await producer.create_topic(topic, 1, 1)
            stored = await producer.send_and_wait(topic, b"k", b"v", None, None, None)
    finally:
        await producer.stop()
    return int(stored.offset)


async def connect(url: URL) -> None:
    """Connect, and leave again."""
    connection = Connection([url], "refused")
    try:
        async with asyncio.timeout(AT_ONCE_S):
            await connection.open()
    finally:
        await connection.close()


async def refused(url: str, **query: str) -> str:
    """Try to connect; return the sentence that says why it did not work."""
    with pytest.raises(TransportError) as told:
        await connect(URL(url).with_query(query))
    assert isinstance(told.value, AccessRefusedError | CredentialsError)
    sentence = str(told.value)
    assert "\n" not in sentence
    assert len(sentence) < 250
    return sentence


async def test_tls_by_an_authority_in_the_url(secured: Guarded) -> None:
    for scheme in ("nats", "tls", "nats+tls"):
        url = URL(f"{scheme}://{secured.address}").with_query(ca=str(secured.certificate))
        connection = Connection([url], "trusting")
        await connection.open()
        try:
            assert connection.client._server_info["tls_required"]
            assert (await connection.jetstream.account_info()).limits is not None
        finally:
            await connection.close()


async def test_tls_by_fausts_credentials(secured: Guarded) -> None:
    context = ssl.create_default_context(cafile=str(secured.certificate))
    assert await sends(f"nats://{secured.address}", SSLCredentials(context)) == 1
    assert await sends(f"nats://{secured.address}", context) == 1


async def test_a_server_of_another_authority_is_refused(secured: Guarded, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    write_certificate(other, tmp_path / "other-key.pem")
    sentence = await refused(f"nats://{secured.address}", ca=str(other))
    assert "not trusted" in sentence
    assert "not trusted" in await refused(f"tls://{secured.address}")


async def test_an_authority_that_cannot_be_read(secured: Guarded, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    assert str(missing) in await refused(f"nats://{secured.address}", ca=str(missing))
    missing.write_text("no certificate")
    assert str(missing) in await refused(f"nats://{secured.address}", ca=str(missing))


async def test_secrets_are_never_sent_in_plain_text(broker: BrokerServer) -> None:
    url = URL(broker.url).with_scheme("tls").with_user(USER).with_password(PASSWORD)
    sentence = await refused(str(url))
    assert "offers no TLS" in sentence
    assert PASSWORD not in sentence


async def test_user_and_password(module_folder: Path) -> None:
    demands = f'authorization {{ user: "{USER}", password: "{PASSWORD}" }}\n'
    guarded = start_guarded(module_folder, "password", demands, tls=False)
    try:
        url = URL(f"nats://{guarded.address}")
        assert await sends(url.with_user(USER).with_password(PASSWORD)) == 1
        assert await sends(url, SASLCredentials(username=USER, password=PASSWORD)) == 1
        for wrong in (url, url.with_user(USER).with_password("wr0ng"), url.with_user(TOKEN)):
            sentence = await refused(str(wrong))
            assert "refuses the user, password" in sentence
            assert "wr0ng" not in sentence
    finally:
        guarded.server.stop()


async def test_a_token(module_folder: Path) -> None:
    guarded = start_guarded(
        module_folder, "token", f'authorization {{ token: "{TOKEN}" }}\n', tls=False
    )
    try:
        assert await sends(URL(f"nats://{guarded.address}").with_user(TOKEN)) == 1
        assert "token" in await refused(f"nats://wrong@{guarded.address}")
    finally:
        guarded.server.stop()


async def test_a_certificate_of_the_client(module_folder: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "client.pem", tmp_path / "client-key.pem"
    write_certificate(certificate, key)
    known = own_folder(module_folder, "known", service_account()) / "client.pem"
    known.write_bytes(certificate.read_bytes())
    known.chmod(0o644)
    known.parent.chmod(0o711)
    guarded = start_guarded(
        module_folder, "mutual", f', ca_file: "{known}", verify: true', tls=True
    )
    try:
        trusted = {"ca": str(guarded.certificate)}
        shown = {"cert": str(certificate), "key": str(key)}
        url = URL(f"nats://{guarded.address}")
        assert await sends(url.with_query(trusted | shown)) == 1
        assert "cert= and key=" in await refused(str(url), **trusted)
    finally:
        guarded.server.stop()


async def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    assert "nkeys" in await refused("nats://127.0.0.1", creds=str(tmp_path / "user.creds"))
    assert "nkeys" in await refused("nats://127.0.0.1", nkey=str(tmp_path / "user.nk"))
    with pytest.raises(CredentialsError, match="PLAIN"):
        Connection([URL("nats://127.0.0.1")], "kerberos", GSSAPICredentials())

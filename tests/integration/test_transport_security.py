"""Who may speak to NATS, and over what: TLS, its authorities, client certificates, passwords.

Every refusal is one sentence, at once: waiting would not help.
"""

import asyncio
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import faust
import pytest
from faust.auth import GSSAPICredentials, SASLCredentials, SSLCredentials
from nats.js.errors import NotFoundError
from yarl import URL

from infra.stack import brokers, probes
from infra.stack.accounts import service_account
from streams.contract import DEADLETTER_STREAM, RISK_STREAM
from streams.transport import Connection
from streams.transport.errors import AccessRefusedError, CredentialsError, TransportError
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.risk import arrival
from tests.fixtures.services import BrokerServer, DatabaseServer, free_port, own_folder
from tests.fixtures.tls import write_certificate
from tests.fixtures.warehouse import run_command, worker_settings
from tests.fixtures.workers import WorkerProcess, eventually_async

# Less than the half minute in which one that does not answer is tried again.
AT_ONCE_S = 20.0
USER, PASSWORD, TOKEN = "worker", "pass:w/rd@ ó", "tok-en"


@dataclass(frozen=True, slots=True)
class Guarded:
    """A server that asks for proof, its address without a scheme, and the files of its trust."""

    server: BrokerServer
    address: str
    certificate: Path
    key: Path


def start_guarded(
    parent: Path, name: str, demands: str, *, tls: bool, tls_demands: str = ""
) -> Guarded:
    """Start a NATS server that demands what the lines of `demands` say, `tls_demands` of TLS."""
    account = service_account()
    home = own_folder(parent, name, account)
    certificate, key = home / "certificate.pem", home / "key.pem"
    write_certificate(certificate, key)
    port, monitoring_port = free_port(), free_port()
    text = brokers.nats_config(
        port=port, monitoring_port=monitoring_port, store=home / "store", sync_interval="2m"
    )
    text += demands
    if tls:
        text += f'tls {{ cert_file: "{certificate}", key_file: "{key}"{tls_demands} }}\n'
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
        module_folder, "mutual", "", tls=True, tls_demands=f', ca_file: "{known}", verify: true'
    )
    try:
        trusted = {"ca": str(guarded.certificate)}
        shown = {"cert": str(certificate), "key": str(key)}
        url = URL(f"nats://{guarded.address}")
        assert await sends(url.with_query(trusted | shown)) == 1
        assert "cert= and key=" in await refused(str(url), **trusted)
    finally:
        guarded.server.stop()


async def test_every_connection_of_a_worker_and_of_the_commands_shows_what_the_url_says(
    module_folder: Path, analytics_database: DatabaseServer, tmp_path: Path
) -> None:
    """The risk worker has the most of them: reader, heartbeat, tables, dead letters, alerts."""
    demands = f'authorization {{ user: "{USER}", password: "{PASSWORD}" }}\n'
    guarded = start_guarded(module_folder, "worker", demands, tls=True)
    url = URL(f"nats://{guarded.address}").with_user(USER).with_password(PASSWORD)
    url = url.with_query(ca=str(guarded.certificate))
    env = worker_settings(guarded.server, analytics_database, tmp_path)
    env["GIOVANG_STREAMS_NATS_URL"] = str(url)
    connection = Connection([url], "shop")
    await connection.open()
    try:
        await ledger.create_stream(connection.jetstream)
        large = arrival(1, ledger.START, amount_minor="90000000")
        poison = arrival(2, ledger.START, payer_country="VNM")
        await ledger.publish(connection.client, map(ledger.event_message, (large, poison)))
        with WorkerProcess("-m", "streams.risk", env=env) as running:
            for stream in (RISK_STREAM, DEADLETTER_STREAM):
                await eventually_async(
                    partial(_holds_one, connection, stream), within_s=90, what=f"one in {stream}"
                )
            assert running.stop() == 0
        listed = run_command("streams.letters", env, "list")
        assert listed.stdout.count("giovang-risk") == 1, listed.stderr
        shown = run_command("streams.status", env, "--json", "--watch", "0.1")
        counts = {one["consumer"]: one for one in json.loads(shown.stdout)["processors"]}
        assert counts["giovang-risk"]["dead_letters"] == 1
    finally:
        await connection.close()
        guarded.server.stop()


async def _holds_one(connection: Connection, stream: str) -> bool:
    try:
        return bool((await connection.jetstream.stream_info(stream)).state.messages == 1)
    except NotFoundError:
        return False


async def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    assert "nkeys" in await refused("nats://127.0.0.1", creds=str(tmp_path / "user.creds"))
    assert "nkeys" in await refused("nats://127.0.0.1", nkey=str(tmp_path / "user.nk"))
    with pytest.raises(CredentialsError, match="PLAIN"):
        Connection([URL("nats://127.0.0.1")], "kerberos", GSSAPICredentials())

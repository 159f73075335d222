"""WebSocket subscriptions: who wants to hear of what, at which commitment.

The hub listens to the network and puts notifications into each socket's outbox; it never waits for
a client. Everything is bounded: subscriptions per socket by a limit, an outbox by the socket, which
closes itself when its client does not keep up.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from solders.account import Account
from solders.pubkey import Pubkey

from infra.localnet import base58
from infra.localnet.account_methods import with_context
from infra.localnet.errors import Json, RpcError, invalid_params
from infra.localnet.journal import Journal
from infra.localnet.network import Commitment, LandedEvent, Network
from infra.localnet.parameters import Config, Parameters, read_pubkey
from infra.localnet.rendering import render_account
from infra.localnet.rpc import Method

MAX_PER_SOCKET: Final = 1000
_EVERYTHING: Final = "all"
_CLOSED: Final = Account(0, b"", Pubkey.default())
_KINDS: Final = ("signature", "account", "logs", "slot")

Subject = bytes | Pubkey | str


class Outbox(Protocol):
    """Where notifications for one socket go."""

    def put(self, message: dict[str, Json]) -> None:
        """Queue a message, or close the socket where its queue is full."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One wish: `kind` of news about `subject`, once it has reached `commitment`."""

    number: int
    kind: str
    subject: Subject
    commitment: Commitment
    config: Config
    outbox: Outbox

    def notify(self, result: Json) -> None:
        """Put a notification into the socket's outbox."""
        params = {"result": result, "subscription": self.number}
        message = {"jsonrpc": "2.0", "method": f"{self.kind}Notification", "params": params}
        self.outbox.put(message)


class Hub:
    """All subscriptions of all sockets, by what they are about."""

    def __init__(self, network: Network, journal: Journal) -> None:
        self._network = network
        self._journal = journal
        self._numbers = itertools.count(1)
        self._by_subject: defaultdict[tuple[str, Subject], dict[int, Subscription]] = defaultdict(
            dict
        )
        self._active: dict[int, Subscription] = {}
        network.observe(self)

    def add(
        self, kind: str, subject: Subject, commitment: Commitment, config: Config, outbox: Outbox
    ) -> Subscription:
        """Register a wish under a new number."""
        subscription = Subscription(next(self._numbers), kind, subject, commitment, config, outbox)
        self._active[subscription.number] = subscription
        self._by_subject[kind, subject][subscription.number] = subscription
        return subscription

    def remove(self, number: int) -> None:
        """Forget a subscription; one that is gone already is fine."""
        subscription = self._active.pop(number, None)
        if subscription is None:
            return
        key = (subscription.kind, subscription.subject)
        del self._by_subject[key][number]
        if not self._by_subject[key]:
            del self._by_subject[key]

    def is_active(self, number: int) -> bool:
        """Whether the subscription still waits for something."""
        return number in self._active

    def check_signature(self, subscription: Subscription) -> None:
        """Notify at once of a signature that has reached its commitment before."""
        if not isinstance(subscription.subject, bytes):
            return
        known = self._journal.status(subscription.subject)
        if known is not None and self._network.commitment_of(known[1]) >= subscription.commitment:
            self._complete(subscription, known[1], known[2])

    def has_landed(self, event: LandedEvent) -> None:
        """Observer: a submission landed in the open slot."""
        for subscription in self._about("signature", event.signature):
            if subscription.config.flag("enableReceivedNotification"):
                subscription.notify(with_context(event.slot, "receivedSignature"))
        self.has_settled(Commitment.processed, [event], event.slot)

    def has_settled(self, commitment: Commitment, events: list[LandedEvent], slot: int) -> None:
        """Observer: what landed in these slots reached the commitment."""
        for event in events:
            for subscription in _at(commitment, self._about("signature", event.signature)):
                self._complete(subscription, slot, event.err)
            subjects: tuple[Subject, ...] = (_EVERYTHING, *event.keys)
            for subject in subjects:
                for subscription in _at(commitment, self._about("logs", subject)):
                    subscription.notify(with_context(slot, _logs(event)))
        # One notification with the last state, however often an account changed meanwhile.
        for address in dict.fromkeys(key for event in events for key in event.changed):
            for subscription in _at(commitment, self._about("account", address)):
                self._tell_account(subscription, address, slot)

    def has_advanced(self, slot: int, parent: int, root: int) -> None:
        """Observer: a new slot is open."""
        for subscription in self._about("slot", _EVERYTHING):
            subscription.notify({"slot": slot, "parent": parent, "root": root})

    def _about(self, kind: str, subject: Subject) -> list[Subscription]:
        # A copy: notifying can complete a subscription or close its socket.
        found = self._by_subject.get((kind, subject))
        return [] if found is None else list(found.values())

    def _tell_account(self, subscription: Subscription, address: Pubkey, slot: int) -> None:
        view = self._network.view(subscription.commitment)
        # A closed account is shown as the empty one it has become.
        account = view.account(address) or _CLOSED
        encoding = subscription.config.account_encoding("binary")
        data_slice = subscription.config.data_slice()
        try:
            value = render_account(account, encoding, view, data_slice)
        except RpcError:
            # Nobody asked, so nobody can be answered with an error: the validator says it so.
            text = "error: data too large for bs58 encoding"
            value = render_account(account, "base64", view, (0, 0))
            value["data"] = text if encoding == "binary" else [text, encoding]
        subscription.notify(with_context(slot, value))

    def _complete(self, subscription: Subscription, slot: int, err: Json) -> None:
        self.remove(subscription.number)
        subscription.notify(with_context(slot, {"err": err}))


class SocketSubscriptions:
    """The subscriptions of one socket, and the methods by which it changes them."""

    def __init__(self, hub: Hub, outbox: Outbox) -> None:
        self._hub = hub
        self._outbox = outbox
        self._mine: dict[int, str] = {}
        self._fresh: list[Subscription] = []

    def methods(self) -> dict[str, Method]:
        """The table of WebSocket methods for this socket."""
        table: dict[str, Method] = {
            "signatureSubscribe": self._subscribe_signature,
            "accountSubscribe": self._subscribe_account,
            "logsSubscribe": self._subscribe_logs,
            "slotSubscribe": self._subscribe_slot,
        }
        for kind in _KINDS:
            table[f"{kind}Unsubscribe"] = self._unsubscriber(kind)
        return table

    def settle(self) -> None:
        """Say at once what new subscriptions wait for, behind the answer that numbered them."""
        fresh, self._fresh = self._fresh, []
        for subscription in fresh:
            self._hub.check_signature(subscription)

    def close(self) -> None:
        """Forget everything; the socket is gone."""
        for number in self._mine:
            self._hub.remove(number)
        self._mine.clear()

    def _subscribe_signature(self, params: Parameters) -> Json:
        config = params.config(1)
        config.flag("enableReceivedNotification")
        subscription = self._add("signature", params.signature(0), config)
        self._fresh.append(subscription)
        return subscription.number

    def _subscribe_account(self, params: Parameters) -> Json:
        config = params.config(1)
        config.account_encoding("binary")
        config.data_slice()
        return self._add("account", params.pubkey(0), config).number

    def _subscribe_logs(self, params: Parameters) -> Json:
        return self._add("logs", _read_logs_filter(params.required(0)), params.config(1)).number

    def _subscribe_slot(self, _params: Parameters) -> Json:
        return self._add("slot", _EVERYTHING, Config({})).number

    def _add(self, kind: str, subject: Subject, config: Config) -> Subscription:
        commitment = config.commitment()
        # Signatures complete by themselves; only what still waits counts.
        self._mine = {
            number: known for number, known in self._mine.items() if self._hub.is_active(number)
        }
        if len(self._mine) >= MAX_PER_SOCKET:
            raise RpcError(RpcError.INTERNAL, f"too many subscriptions; max {MAX_PER_SOCKET}")
        subscription = self._hub.add(kind, subject, commitment, config, self._outbox)
        self._mine[subscription.number] = kind
        return subscription

    def _unsubscriber(self, kind: str) -> Method:
        def unsubscribe(params: Parameters) -> Json:
            number = params.integer(0)
            if self._mine.get(number) != kind:
                raise invalid_params("Invalid subscription id.")
            del self._mine[number]
            self._hub.remove(number)
            return True

        return unsubscribe


def _at(commitment: Commitment, found: Iterable[Subscription]) -> Iterable[Subscription]:
    return (each for each in found if each.commitment is commitment)


def _logs(event: LandedEvent) -> dict[str, Json]:
    signature = base58.encode(event.signature)
    return {"signature": signature, "err": event.err, "logs": event.logs}


def _read_logs_filter(value: Json) -> Subject:
    if value in ("all", "allWithVotes"):
        return _EVERYTHING
    if isinstance(value, dict):
        mentions = value.get("mentions")
        if isinstance(mentions, list) and len(mentions) == 1 and isinstance(mentions[0], str):
            return read_pubkey(mentions[0])
    raise invalid_params("Invalid Request: Only 1 address supported")

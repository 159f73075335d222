"""The ledger over time: slots, commitment, block hashes, and the order in which things land.

A Solana transaction lands in the slot that is open, is journalled, and only then is it answered.
Reads at a commitment see exactly the ledger at the end of that commitment's slot: accounts changed
since are shown as they were. If the journal fails after the runtime has moved on, the network is
broken and says so to whoever waits on `broken`; the process must end and reload.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from solders.account import Account
from solders.hash import Hash
from solders.pubkey import Pubkey

from infra.localnet.clock import Blockhashes, SlotClock
from infra.localnet.errors import Json, NetworkBrokenError, RpcError, StateError
from infra.localnet.journal import Changes, Journal, Landed
from infra.localnet.runtime import SLOT_HASHES, Executed, Runtime, Simulated
from infra.localnet.settings import LocalnetSettings
from infra.localnet.submission import AccountKeys, Submission, UnresolvedError
from infra.localnet.tokens import read_holding

# Memory for what is not yet final is bounded by this, times finalized_slots.
MAX_LANDED_PER_SLOT: Final = 10_000
MAX_SCANNED: Final = 20_000


class Commitment(IntEnum):
    """How settled a slot is; a greater one is more settled."""

    processed = 0
    confirmed = 1
    finalized = 2


@dataclass(frozen=True, slots=True)
class LandedEvent:
    """What subscribers may hear of one landed submission."""

    slot: int
    signature: bytes
    err: Json
    logs: list[str]
    keys: frozenset[Pubkey]
    changed: frozenset[Pubkey]


@dataclass(slots=True)
class OpenSlot:
    """A slot that is not final yet: what landed in it, and how it found the accounts."""

    landed: list[LandedEvent] = field(default_factory=list)
    before: dict[Pubkey, Account | None] = field(default_factory=dict)


class Observer(Protocol):
    """Whoever is told as the ledger moves; calls are made on the event loop, in order."""

    def has_landed(self, event: LandedEvent) -> None:
        """A submission landed in the open slot."""

    def has_settled(self, commitment: Commitment, events: list[LandedEvent], slot: int) -> None:
        """All slots up to `slot` reached the commitment; `events` landed in the new ones."""

    def has_advanced(self, slot: int, parent: int, root: int) -> None:
        """A new slot is open."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A submission that did not land; the ledger is as before. `logs` are the execution's."""

    err: Json
    logs: list[str]


class Network:
    """The one writer of the ledger."""

    def __init__(
        self,
        settings: LocalnetSettings,
        journal: Journal,
        runtime: Runtime,
        now_ms: Callable[[], int],
    ) -> None:
        """Load the journal; `now_ms` is the wall clock. Raises StateError without a genesis."""
        seed = journal.seed()
        if seed is None:
            message = "the journal has no genesis"
            raise StateError(message)
        self._settings = settings
        self._journal = journal
        self._runtime = runtime
        self._now_ms = now_ms
        self._observers: list[Observer] = []
        self._open: dict[int, OpenSlot] = {}
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.seed = seed
        runtime.load(journal.accounts())
        self.landed_count, last_slot = journal.last()
        # What was journalled is durable and never undone, so a restart begins where it is final.
        first_slot = last_slot + settings.finalized_slots + 1
        now = now_ms()
        self._clock = SlotClock(
            journal, slot_ms=settings.slot_ms, first_slot=first_slot, now_ms=now
        )
        self._hashes = Blockhashes(seed)
        self.tip = self._clock.slot_at(now, tip=first_slot)
        self._enter(self.tip)

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of everything from now on."""
        self._observers.append(observer)

    def slot(self, commitment: Commitment) -> int:
        """The newest slot that has reached the commitment."""
        if commitment is Commitment.processed:
            return self.tip
        if commitment is Commitment.confirmed:
            return max(self.tip - self._settings.confirmed_slots, 0)
        return max(self.tip - self._settings.finalized_slots, 0)

    def commitment_of(self, slot: int) -> Commitment:
        """How settled a slot is now."""
        if slot <= self.slot(Commitment.finalized):
            return Commitment.finalized
        if slot <= self.slot(Commitment.confirmed):
            return Commitment.confirmed
        return Commitment.processed

    def unix_time(self, slot: int) -> int:
        """Block time of a slot in Unix seconds."""
        return self._clock.unix_time(slot)

    def blockhash(self, slot: int) -> Hash:
        """Block hash of a slot."""
        return self._hashes.of(slot)

    def is_blockhash_valid(self, blockhash: Hash, slot: int) -> bool:
        """Whether a submission landing in `slot` may refer to the hash."""
        return self._hashes.is_valid(blockhash, slot)

    def view(self, commitment: Commitment) -> "View":
        """The ledger as it stands at a commitment; valid until the event loop turns."""
        return View(self.slot(commitment), self._runtime, self._journal, self._open)

    def next_slot_in_s(self) -> float:
        """Seconds until the wall clock asks for the next slot; 0 where it already does."""
        return max(self._clock.started_at_ms(self.tip + 1) - self._now_ms(), 0) / 1000

    def advance(self) -> None:
        """Open the slot that the wall clock asks for, and settle those it leaves behind."""
        slot = self._clock.slot_at(self._now_ms(), tip=self.tip)
        if slot == self.tip:
            return
        parent, self.tip = self.tip, slot
        self._enter(slot)
        final = self.slot(Commitment.finalized)
        for observer in self._observers:
            observer.has_advanced(slot, parent, final)
        for commitment, lag in (
            (Commitment.confirmed, self._settings.confirmed_slots),
            (Commitment.finalized, self._settings.finalized_slots),
        ):
            reached = range(max(parent - lag + 1, 0), slot - lag + 1)
            events = [
                event
                for each in sorted(self._open)
                if each in reached
                for event in self._open[each].landed
            ]
            for observer in self._observers:
                observer.has_settled(commitment, events, slot - lag)
        for each in [known for known in self._open if known <= final]:
            del self._open[each]

    def check(self, submission: Submission, *, any_blockhash: bool = False) -> AccountKeys | str:
        """Everything the runtime asks before executing: the keys, or the name of the objection."""
        if not any_blockhash:
            blockhash = submission.message.recent_blockhash
            if not self._hashes.is_valid(blockhash, self.tip):
                return "BlockhashNotFound"
            if self._journal.holds(submission.signature, submission.message_hash):
                return "AlreadyProcessed"
        try:
            return submission.resolve(self._runtime.account)
        except UnresolvedError as error:
            return error.err

    def simulate(self, submission: Submission, *, verify_signatures: bool = True) -> Simulated:
        """What the submission would do at the tip; call after `check`."""
        return self._runtime.simulate(submission, verify_signatures=verify_signatures)

    def submit(self, submission: Submission) -> Landed | Refused:
        """Execute and journal a submission.

        Raises NetworkBrokenError where the runtime executed it but the journal did not take it.
        """
        if self.broken.done():
            raise NetworkBrokenError
        keys = self.check(submission)
        if isinstance(keys, str):
            return Refused(keys, [])
        here = self._open.setdefault(self.tip, OpenSlot())
        if len(here.landed) >= MAX_LANDED_PER_SLOT:
            raise RpcError(RpcError.NODE_UNHEALTHY, "The slot is full; try again in the next one")
        try:
            executed = self._runtime.execute(submission, keys)
            if not executed.charged:
                return Refused(executed.err, list(executed.logs))
            landed = self._record(submission, keys, executed)
        except BaseException as error:
            # Whatever it was, the runtime may have moved on without the journal.
            self.broken.set_exception(NetworkBrokenError(str(error)))
            raise
        self._announce(here, landed, keys, executed.before)
        return landed

    def _record(self, submission: Submission, keys: AccountKeys, executed: Executed) -> Landed:
        landed = Landed(
            sequence=self.landed_count + 1,
            signature=submission.signature,
            slot=self.tip,
            err=executed.err,
            memo=submission.memo(),
            wire=submission.wire,
            meta=executed.meta,
        )
        self._journal.record(landed, submission.message_hash, keys.all, executed.after)
        self.landed_count = landed.sequence
        return landed

    def _announce(self, here: OpenSlot, landed: Landed, keys: AccountKeys, before: Changes) -> None:
        for address, account in before.items():
            here.before.setdefault(address, account)
        event = LandedEvent(
            slot=landed.slot,
            signature=landed.signature,
            err=landed.err,
            logs=landed.meta["logMessages"],
            keys=frozenset(keys.all),
            changed=frozenset(before),
        )
        here.landed.append(event)
        for observer in self._observers:
            observer.has_landed(event)

    def _enter(self, slot: int) -> None:
        self._hashes.advance(slot)
        schedule = self._runtime.schedule
        epoch_start = schedule.get_first_slot_in_epoch(schedule.get_epoch(slot))
        self._runtime.set_time(
            slot=slot,
            unix_time=self._clock.unix_time(slot),
            epoch_start=self._clock.unix_time(epoch_start),
            hashes=self._hashes.recent(slot, SLOT_HASHES),
        )


class View:
    """Accounts as they were at the end of `slot`.

    Programs and sysvars, which no submission here changes, are always those of the tip.
    """

    def __init__(
        self, slot: int, runtime: Runtime, journal: Journal, open_slots: dict[int, OpenSlot]
    ) -> None:
        self.slot = slot
        self._runtime = runtime
        self._journal = journal
        self._later = [open_slots[each] for each in sorted(open_slots) if each > slot]

    def account(self, address: Pubkey) -> Account | None:
        """The account, or None where nothing was."""
        for later in self._later:
            if address in later.before:
                return later.before[address]
        return self._runtime.account(address)

    def token_accounts(self, owner: Pubkey) -> Iterator[tuple[Pubkey, Account]]:
        """All token accounts of an owner. Raises RpcError where they are too many to list."""
        candidates = set(self._journal.token_accounts(owner, MAX_SCANNED + 1))
        candidates |= {
            address
            for later in self._later
            for address, account in later.before.items()
            if (holding := read_holding(account)) is not None and holding.owner == owner
        }
        for address, account in self._read(candidates):
            holding = read_holding(account)
            if holding is not None and holding.owner == owner:
                yield address, account

    def program_accounts(self, program: Pubkey) -> Iterator[tuple[Pubkey, Account]]:
        """All accounts of a program. Raises RpcError where they are too many to list."""
        candidates = set(self._journal.program_accounts(program, MAX_SCANNED + 1))
        candidates |= {
            address
            for later in self._later
            for address, account in later.before.items()
            if account is not None and account.owner == program
        }
        for address, account in self._read(candidates):
            if account.owner == program:
                yield address, account

    def _read(self, candidates: set[Pubkey]) -> Iterator[tuple[Pubkey, Account]]:
        if len(candidates) > MAX_SCANNED:
            raise RpcError(
                RpcError.SCAN, "scan aborted: The accumulated scan results exceeded the limit"
            )
        for address in sorted(candidates, key=bytes):
            account = self.account(address)
            if account is not None:
                yield address, account

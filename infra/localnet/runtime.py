"""The Solana runtime itself: LiteSVM, and what one execution did to the accounts it touched.

LiteSVM belongs to one thread; every call comes from the event loop's. Block hashes and repeats are
the network's business, so LiteSVM's own checks of them are off; signatures, programs, rent and
fees are the runtime's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from solders.account import Account
from solders.clock import Clock
from solders.epoch_schedule import EpochSchedule
from solders.hash import Hash
from solders.litesvm import LiteSVM
from solders.pubkey import Pubkey
from solders.transaction_metadata import FailedTransactionMetadata, TransactionMetadata

from infra.localnet import base58
from infra.localnet.errors import Json
from infra.localnet.submission import AccountKeys, Submission
from infra.localnet.tokens import read_holding, read_mint, ui_token_amount

SLOT_HASHES: Final = 512


@dataclass(frozen=True, slots=True)
class Simulated:
    """What an execution would do; nothing was changed."""

    err: Json
    metadata: TransactionMetadata
    after: Mapping[Pubkey, Account]


@dataclass(frozen=True, slots=True)
class Executed:
    """What an execution did.

    `charged` is false where the runtime refused it before taking the fee: then nothing changed.
    `before` and `after` hold the accounts that changed; None is an account that does not exist.
    """

    err: Json
    charged: bool
    meta: dict[str, Json]
    logs: Sequence[str]
    before: dict[Pubkey, Account | None]
    after: dict[Pubkey, Account | None]


class Runtime:
    """Accounts and programs at the tip of the ledger."""

    def __init__(self) -> None:
        svm = LiteSVM().with_blockhash_check(check=False).with_transaction_history(0)
        self.schedule = EpochSchedule.without_warmup()
        svm.set_epoch_schedule(self.schedule)
        self._svm = svm
        self._programs: set[Pubkey] = set()

    def load(self, accounts: Iterable[tuple[Pubkey, Account]]) -> None:
        """Put accounts in place without executing anything."""
        for address, account in accounts:
            self._svm.set_account(address, account)

    def account(self, address: Pubkey) -> Account | None:
        """The account at the tip, or None where nothing is."""
        account = self._svm.get_account(address)
        return None if account is None or account.lamports == 0 else account

    def minimum_balance(self, data_bytes: int) -> int:
        """Lamports that exempt an account of this size from rent."""
        return self._svm.minimum_balance_for_rent_exemption(data_bytes)

    def set_time(
        self, *, slot: int, unix_time: int, epoch_start: int, hashes: Sequence[tuple[int, Hash]]
    ) -> None:
        """Write the Clock and SlotHashes sysvars for the slot that is open now."""
        epoch = self.schedule.get_epoch(slot)
        leader_epoch = self.schedule.get_leader_schedule_epoch(slot)
        self._svm.set_clock(Clock(slot, epoch_start, epoch, leader_epoch, unix_time))
        self._svm.set_slot_hashes(hashes)

    def simulate(self, submission: Submission, *, verify_signatures: bool = True) -> Simulated:
        """Execute without effect."""
        self._svm.with_sigverify(verify_signatures)
        try:
            result = self._svm.simulate_transaction(submission.decoded)
        finally:
            self._svm.with_sigverify(sigverify=True)
        if isinstance(result, FailedTransactionMetadata):
            return Simulated(err=_err(result), metadata=result.meta(), after={})
        return Simulated(err=None, metadata=result.meta(), after=dict(result.post_accounts()))

    def execute(self, submission: Submission, keys: AccountKeys) -> Executed:
        """Execute for good; the caller must journal what is `charged`."""
        everything = keys.all
        writable = _writable(submission, keys)
        before = [
            self.account(key) if key in writable else self._snapshot(key) for key in everything
        ]
        result = self._svm.send_transaction(submission.decoded)
        if isinstance(result, FailedTransactionMetadata):
            err, metadata = _err(result), result.meta()
        else:
            err, metadata = None, result
        after = [
            self.account(key) if key in writable else before[index]
            for index, key in enumerate(everything)
        ]
        changed = [index for index in range(len(everything)) if before[index] != after[index]]
        return Executed(
            err=err,
            charged=err is None or bool(changed),
            meta=self._meta(err, metadata, keys, before, after),
            logs=metadata.logs(),
            before={everything[index]: before[index] for index in changed},
            after={everything[index]: after[index] for index in changed},
        )

    def _snapshot(self, address: Pubkey) -> Account | None:
        # A read-only program's bytes are large and not shown: its balance is enough.
        if address in self._programs:
            return _program_stub(self._svm.get_balance(address) or 0)
        account = self.account(address)
        if account is not None and account.executable:
            self._programs.add(address)
            return _program_stub(account.lamports)
        return account

    def _meta(
        self,
        err: Json,
        metadata: TransactionMetadata,
        keys: AccountKeys,
        before: Sequence[Account | None],
        after: Sequence[Account | None],
    ) -> dict[str, Json]:
        everything = keys.all
        existed = dict(zip(everything, before, strict=True))
        exists = dict(zip(everything, after, strict=True))
        meta: dict[str, Json] = {
            "err": err,
            "fee": metadata.fee(),
            "preBalances": [_lamports(account) for account in before],
            "postBalances": [_lamports(account) for account in after],
            "preTokenBalances": self._token_balances(before, existed),
            "postTokenBalances": self._token_balances(after, exists),
            "innerInstructions": inner_instructions(metadata),
            "logMessages": metadata.logs(),
            "loadedAddresses": {
                "writable": [str(key) for key in keys.loaded_writable],
                "readonly": [str(key) for key in keys.loaded_readonly],
            },
            "computeUnitsConsumed": metadata.compute_units_consumed(),
        }
        returned = metadata.return_data()
        if returned.data:
            meta["returnData"] = {
                "programId": str(returned.program_id),
                "data": returned.data.hex(),
            }
        return meta

    def _token_balances(
        self, accounts: Sequence[Account | None], known: Mapping[Pubkey, Account | None]
    ) -> list[dict[str, Json]]:
        balances = []
        for index, account in enumerate(accounts):
            holding = read_holding(account)
            if holding is None:
                continue
            mint = read_mint(known.get(holding.mint) or self.account(holding.mint))
            if mint is None:
                continue
            balances.append(
                {
                    "accountIndex": index,
                    "mint": str(holding.mint),
                    "owner": str(holding.owner),
                    "programId": str(holding.program),
                    "uiTokenAmount": ui_token_amount(holding.amount_minor, mint.decimals),
                }
            )
        return balances


def inner_instructions(metadata: TransactionMetadata) -> list[dict[str, Json]]:
    """The instructions programs called, by the index of the outer one, in compiled form."""
    return [
        {
            "index": index,
            "instructions": [
                {
                    "programIdIndex": inner.instruction().program_id_index,
                    "accounts": list(inner.instruction().accounts),
                    "data": base58.encode(inner.instruction().data),
                    "stackHeight": inner.stack_height(),
                }
                for inner in called
            ],
        }
        for index, called in enumerate(metadata.inner_instructions())
        if called
    ]


def _err(result: FailedTransactionMetadata) -> Json:
    return orjson.loads(result.to_json())["err"]


def _program_stub(lamports: int) -> Account:
    return Account(lamports, b"", Pubkey.default(), executable=True)


def _lamports(account: Account | None) -> int:
    return 0 if account is None else account.lamports


def _writable(submission: Submission, keys: AccountKeys) -> frozenset[Pubkey]:
    static = {key for index, key in enumerate(keys.static) if submission.is_writable(index)}
    return frozenset(static | set(keys.loaded_writable))

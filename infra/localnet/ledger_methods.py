"""JSON-RPC methods about slots, time, block hashes and what has landed.

History calls are index look-ups in the journal and never show what has not reached the asked
commitment.
"""

import hashlib
import importlib.metadata
from typing import Final

from solders.hash import Hash

from infra.localnet import base58
from infra.localnet.account_methods import with_context
from infra.localnet.clock import BLOCKHASH_SLOTS
from infra.localnet.errors import Json, RpcError, invalid_params
from infra.localnet.journal import Journal
from infra.localnet.network import Commitment, Network
from infra.localnet.parameters import Parameters, read_signature
from infra.localnet.rendering import LANDED_ENCODINGS, render_landed
from infra.localnet.runtime import Runtime

_MAX_SIGNATURES: Final = 1000
_MAX_STATUSES: Final = 256
# The validator answers from its status cache only, unless asked to search the history.
_RECENT_STATUS_SLOTS: Final = 300


class LedgerMethods:
    """Each public method answers the RPC call of the same name in camel case."""

    def __init__(self, network: Network, runtime: Runtime, journal: Journal) -> None:
        self._network = network
        self._runtime = runtime
        self._journal = journal

    def get_slot(self, params: Parameters) -> Json:
        """Newest slot at the commitment."""
        return params.config(0).slot(self._network)

    def get_block_height(self, params: Parameters) -> Json:
        """Newest block height; here every slot has a block, so it is the slot."""
        return params.config(0).slot(self._network)

    def get_block_time(self, params: Parameters) -> Json:
        """Unix time of a slot, in seconds."""
        slot = params.integer(0)
        if slot > self._network.tip:
            raise RpcError(RpcError.BLOCK_NOT_AVAILABLE, f"Block not available for slot {slot}")
        return self._network.unix_time(slot)

    def get_epoch_info(self, params: Parameters) -> Json:
        """Where in its epoch the network stands."""
        slot = params.config(0).slot(self._network)
        epoch, index = self._runtime.schedule.get_epoch_and_slot_index(slot)
        return {
            "absoluteSlot": slot,
            "blockHeight": slot,
            "epoch": epoch,
            "slotIndex": index,
            "slotsInEpoch": self._runtime.schedule.slots_per_epoch,
            "transactionCount": self._journal.last_sequence_at(slot),
        }

    def get_transaction_count(self, params: Parameters) -> Json:
        """How many Solana transactions have landed."""
        return self._journal.last_sequence_at(params.config(0).slot(self._network))

    def get_latest_blockhash(self, params: Parameters) -> Json:
        """A block hash to refer to, and the last block height at which it is good."""
        slot = params.config(0).slot(self._network)
        value = {
            "blockhash": str(self._network.blockhash(slot)),
            "lastValidBlockHeight": slot + BLOCKHASH_SLOTS,
        }
        return with_context(slot, value)

    def is_blockhash_valid(self, params: Parameters) -> Json:
        """Whether a submission may still refer to the hash."""
        blockhash = params.blockhash(0)
        slot = params.config(1).slot(self._network)
        return with_context(slot, self._network.is_blockhash_valid(blockhash, slot))

    def get_signature_statuses(self, params: Parameters) -> Json:
        """How far each signature has come, or null where it is not known."""
        signatures = [read_signature(text) for text in params.texts(0, _MAX_STATUSES)]
        search = params.config(1).flag("searchTransactionHistory")
        tip = self._network.tip
        oldest = 0 if search else tip - _RECENT_STATUS_SLOTS
        return with_context(tip, [self._status(signature, oldest) for signature in signatures])

    def get_signatures_for_address(self, params: Parameters) -> Json:
        """History of an address, newest first, paged by `before` and `until`."""
        address, config = params.pubkey(0), params.config(1)
        limit = config.integer("limit")
        if limit is None:
            limit = _MAX_SIGNATURES
        if not 1 <= limit <= _MAX_SIGNATURES:
            raise invalid_params(f"Invalid limit; max {_MAX_SIGNATURES}")
        before, until = config.signature("before"), config.signature("until")
        config.settled_commitment()
        newest = self._journal.last_sequence_at(config.slot(self._network))
        below = newest + 1
        if before is not None:
            known = self._journal.status(before)
            if known is None:
                return []  # The validator cannot page from a signature it does not know either.
            below = min(below, known[0])
        stop = None if until is None else self._journal.status(until)
        after = 0 if stop is None else stop[0]
        return [
            {
                "signature": base58.encode(mention.signature),
                "slot": mention.slot,
                "err": mention.err,
                "memo": mention.memo,
                "blockTime": self._network.unix_time(mention.slot),
                "confirmationStatus": self._network.commitment_of(mention.slot).name,
            }
            for mention in self._journal.mentions(address, after, below, limit)
        ]

    def get_transaction(self, params: Parameters) -> Json:
        """A landed submission with what it did, or null."""
        signature = params.signature(0)
        # The first RPC versions took the encoding as a bare string; clients still may.
        given = params.values[1] if params.present(1) else None
        values = [None, {"encoding": given}] if isinstance(given, str) else params.values
        config = Parameters(values).config(1)
        encoding = config.choice("encoding", LANDED_ENCODINGS, "json")
        max_version = config.integer("maxSupportedTransactionVersion")
        visible = self._network.slot(config.settled_commitment())
        landed = self._journal.find(signature)
        if landed is None or landed.slot > visible:
            return None
        block_time = self._network.unix_time(landed.slot)
        return render_landed(landed, encoding, max_version, block_time)

    def get_recent_prioritization_fees(self, params: Parameters) -> Json:
        """No one competes for this network's slots: there are no samples."""
        if params.present(0):
            params.texts(0, 128)
        return []

    def get_genesis_hash(self, _params: Parameters) -> Json:
        """Identity of this network."""
        return str(Hash(hashlib.sha256(b"genesis" + self._network.seed).digest()))

    def get_first_available_block(self, _params: Parameters) -> Json:
        """The whole history is kept."""
        return 0

    def get_health(self, _params: Parameters) -> Json:
        """The word "ok"; a network that is not well does not answer at all."""
        return "ok"

    def get_version(self, _params: Parameters) -> Json:
        """The runtime's carrier: this is LiteSVM in solders, not a validator's release."""
        version = importlib.metadata.version("solders")
        digest = hashlib.sha256(f"solders {version}".encode()).digest()
        return {"solana-core": version, "feature-set": int.from_bytes(digest[:4], "big")}

    def _status(self, signature: bytes, oldest: int) -> Json:
        known = self._journal.status(signature)
        if known is None or known[1] < oldest:
            return None
        _, slot, err = known
        commitment = self._network.commitment_of(slot)
        final = commitment is Commitment.finalized
        return {
            "slot": slot,
            "confirmations": None if final else self._network.tip - slot,
            "err": err,
            "status": {"Ok": None} if err is None else {"Err": err},
            "confirmationStatus": commitment.name,
        }

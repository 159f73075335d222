"""JSON-RPC methods that execute: send, simulate, fees, and the faucet.

A submission that is answered with its signature has landed and is journalled, or was sent with
`skipPreflight` and refused by the runtime: then, as on a real network, it never appears.
"""

import base64
import binascii
import re
from typing import Final

from solders.account import Account
from solders.message import Message, MessageV0, from_bytes_versioned
from solders.pubkey import Pubkey

from infra.localnet import base58
from infra.localnet.account_methods import with_context
from infra.localnet.clock import BLOCKHASH_SLOTS
from infra.localnet.errors import Json, RpcError, describe, invalid_params
from infra.localnet.faucet import Faucet
from infra.localnet.network import Commitment, Network, Refused
from infra.localnet.parameters import MAX_U64, Config, Parameters, read_pubkey
from infra.localnet.rendering import ACCOUNT_ENCODINGS, render_account, render_inner, return_data
from infra.localnet.runtime import Simulated, inner_instructions
from infra.localnet.submission import AccountKeys, Submission, decode_submission
from infra.telemetry import get_logger

_LAMPORTS_PER_SIGNATURE: Final = 5000
_MICRO: Final = 1_000_000
_MAX_COMPUTE_UNITS: Final = 1_400_000
_UNITS_PER_INSTRUCTION: Final = 200_000
_UNITS_PER_BUILTIN: Final = 3_000
_COMPUTE_BUDGET: Final = Pubkey.from_string("ComputeBudget111111111111111111111111111111")
_BUILTINS: Final = frozenset(
    (
        Pubkey.default(),
        _COMPUTE_BUDGET,
        Pubkey.from_string("Vote111111111111111111111111111111111111111"),
        Pubkey.from_string("BPFLoaderUpgradeab1e11111111111111111111111"),
    )
)
_MAX_SIMULATED_ACCOUNTS: Final = 64
_AMOUNT_PATTERN: Final = re.compile(r"[1-9][0-9]{0,19}")


class SubmissionMethods:
    """Each public method answers the RPC call of the same name in camel case."""

    def __init__(self, network: Network, faucet: Faucet) -> None:
        self._network = network
        self._faucet = faucet
        self._log = get_logger(__name__)

    def send_transaction(self, params: Parameters) -> Json:
        """Execute a signed Solana transaction; returns its signature."""
        config = params.config(1)
        submission = _read_submission(params, config)
        config.slot(self._network)
        signature = str(submission.decoded.signatures[0])
        if not config.flag("skipPreflight"):
            self._preflight(submission)
        outcome = self._network.submit(submission)
        if isinstance(outcome, Refused):
            # Sent without preflight: on a real network it would vanish as silently.
            self._log.info("submission refused", signature=signature, err=outcome.err)
        return signature

    def simulate_transaction(self, params: Parameters) -> Json:
        """What a Solana transaction would do at the tip."""
        config = params.config(1)
        submission = _read_submission(params, config)
        slot = config.slot(self._network)
        verify, replace = config.flag("sigVerify"), config.flag("replaceRecentBlockhash")
        if verify and replace:
            raise invalid_params("sigVerify may not be used with replaceRecentBlockhash")
        keys = self._network.check(submission, any_blockhash=replace)
        if isinstance(keys, str):
            result = _simulation_failure(keys, [])
        else:
            simulated = self._network.simulate(submission, verify_signatures=verify)
            if simulated.err == "SignatureFailure":
                raise _signature_failure()
            result = _simulation_result(simulated)
            result["accounts"] = self._simulated_accounts(config, simulated)
            if config.flag("innerInstructions"):
                result["innerInstructions"] = _inner(simulated, keys)
        if replace:
            result["replacementBlockhash"] = {
                "blockhash": str(self._network.blockhash(slot)),
                "lastValidBlockHeight": slot + BLOCKHASH_SLOTS,
            }
        return with_context(self._network.tip, result)

    def get_fee_for_message(self, params: Parameters) -> Json:
        """Lamports a message would cost, or null where its block hash has expired."""
        try:
            message = from_bytes_versioned(base64.b64decode(params.text(0), validate=True))
        except (binascii.Error, ValueError) as error:
            raise invalid_params(f"failed to deserialize VersionedMessage: {error}") from error
        if not isinstance(message, Message | MessageV0):
            raise invalid_params("failed to deserialize VersionedMessage: unsupported version")
        slot = params.config(1).slot(self._network)
        if not self._network.is_blockhash_valid(message.recent_blockhash, slot):
            return with_context(slot, None)
        signatures = message.header.num_required_signatures
        fee = signatures * _LAMPORTS_PER_SIGNATURE + _prioritization_fee(message)
        return with_context(slot, fee)

    def request_airdrop(self, params: Parameters) -> Json:
        """Give SOL from the faucet; returns the signature of the transfer."""
        signature = self._faucet.airdrop(params.pubkey(0), params.integer(1))
        return base58.encode(signature)

    def giovang_faucet(self, params: Parameters) -> Json:
        """Give test USDC or USDT: owner, mint, amount in minor units as a decimal string."""
        owner, mint, text = params.pubkey(0), params.pubkey(1), params.text(2)
        if not _AMOUNT_PATTERN.fullmatch(text) or int(text) > MAX_U64:
            raise invalid_params("Invalid params: the amount must be a positive decimal string")
        amount_minor = int(text)
        return base58.encode(self._faucet.mint(owner, mint, amount_minor))

    def _preflight(self, submission: Submission) -> None:
        keys = self._network.check(submission)
        if isinstance(keys, str):
            raise _preflight_failure(_simulation_failure(keys, []))
        simulated = self._network.simulate(submission)
        if simulated.err == "SignatureFailure":
            raise _signature_failure()
        if simulated.err is not None:
            raise _preflight_failure(_simulation_result(simulated))

    def _simulated_accounts(self, config: Config, simulated: Simulated) -> Json:
        wanted = config.values.get("accounts")
        if wanted is None:
            return None
        if not isinstance(wanted, dict):
            raise invalid_params("Invalid params: accounts must be an object")
        addresses = Parameters([wanted.get("addresses")]).texts(0, _MAX_SIMULATED_ACCOUNTS)
        encoding = Config(wanted).choice("encoding", ACCOUNT_ENCODINGS, "base64")
        if encoding in ("binary", "base58"):
            raise invalid_params("base58 encoding not supported")
        view = self._network.view(Commitment.processed)
        shown: list[Json] = []
        for address in map(read_pubkey, addresses):
            account: Account | None = None
            if simulated.err is None:
                account = simulated.after.get(address) or view.account(address)
            shown.append(None if account is None else render_account(account, encoding, view))
        return shown


def _read_submission(params: Parameters, config: Config) -> Submission:
    encoding = config.choice("encoding", ("base58", "base64"), "base58")
    return decode_submission(params.text(0), encoding)


def _simulation_failure(err: Json, logs: list[str]) -> dict[str, Json]:
    return {
        "err": err,
        "logs": logs,
        "accounts": None,
        "unitsConsumed": 0,
        "returnData": None,
        "innerInstructions": None,
        "replacementBlockhash": None,
    }


def _simulation_result(simulated: Simulated) -> dict[str, Json]:
    metadata = simulated.metadata
    result = _simulation_failure(simulated.err, metadata.logs())
    result["unitsConsumed"] = metadata.compute_units_consumed()
    returned = metadata.return_data()
    if returned.data:
        result["returnData"] = return_data(str(returned.program_id), bytes(returned.data))
    return result


def _inner(simulated: Simulated, keys: AccountKeys) -> Json:
    return render_inner(inner_instructions(simulated.metadata), list(keys.all))


def _preflight_failure(result: dict[str, Json]) -> RpcError:
    sentence = describe(result["err"])
    return RpcError(
        RpcError.PREFLIGHT_FAILURE, f"Transaction simulation failed: {sentence}", result
    )


def _signature_failure() -> RpcError:
    return RpcError(RpcError.SIGNATURE_VERIFICATION, "Transaction signature verification failure")


def _prioritization_fee(message: Message | MessageV0) -> int:
    price = limit = None
    default = 0
    for instruction in message.instructions:
        program = message.account_keys[instruction.program_id_index]
        default += _UNITS_PER_BUILTIN if program in _BUILTINS else _UNITS_PER_INSTRUCTION
        data = bytes(instruction.data)
        if program != _COMPUTE_BUDGET:
            continue
        if data[:1] == b"\x02" and len(data) == 5:
            limit = int.from_bytes(data[1:], "little")
        elif data[:1] == b"\x03" and len(data) == 9:
            price = int.from_bytes(data[1:], "little")
    units = min(default if limit is None else limit, _MAX_COMPUTE_UNITS)
    return -(-(price or 0) * units // _MICRO)

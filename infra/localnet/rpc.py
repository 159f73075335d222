"""JSON-RPC 2.0: from the bytes of a request, or of a batch, to the bytes of its answer.

Every request gets exactly one answer or one error; a notification gets none. A mistake of the
caller is an error object; a mistake of ours is logged with its trace and answered as -32603, and a
broken network goes on to end the process.
"""

from collections.abc import Callable, Mapping
from typing import Final

import orjson

from infra.localnet.account_methods import AccountMethods
from infra.localnet.errors import Json, NetworkBrokenError, RpcError, invalid_params
from infra.localnet.ledger_methods import LedgerMethods
from infra.localnet.parameters import Parameters
from infra.localnet.submission_methods import SubmissionMethods
from infra.telemetry import get_logger

MAX_BATCH: Final = 200
# The longest parameter list of any method is four; more is a mistake worth telling.
_MAX_PARAMETERS: Final = 8

Method = Callable[[Parameters], Json]


def rpc_methods(
    accounts: AccountMethods, ledger: LedgerMethods, submissions: SubmissionMethods
) -> dict[str, Method]:
    """The table of all HTTP methods."""
    return {
        "getAccountInfo": accounts.get_account_info,
        "getBalance": accounts.get_balance,
        "getMinimumBalanceForRentExemption": accounts.get_minimum_balance_for_rent_exemption,
        "getMultipleAccounts": accounts.get_multiple_accounts,
        "getProgramAccounts": accounts.get_program_accounts,
        "getTokenAccountBalance": accounts.get_token_account_balance,
        "getTokenAccountsByOwner": accounts.get_token_accounts_by_owner,
        "getTokenSupply": accounts.get_token_supply,
        "getBlockHeight": ledger.get_block_height,
        "getBlockTime": ledger.get_block_time,
        "getEpochInfo": ledger.get_epoch_info,
        "getFirstAvailableBlock": ledger.get_first_available_block,
        "getGenesisHash": ledger.get_genesis_hash,
        "getHealth": ledger.get_health,
        "getLatestBlockhash": ledger.get_latest_blockhash,
        "getRecentPrioritizationFees": ledger.get_recent_prioritization_fees,
        "getSignatureStatuses": ledger.get_signature_statuses,
        "getSignaturesForAddress": ledger.get_signatures_for_address,
        "getSlot": ledger.get_slot,
        "getTransaction": ledger.get_transaction,
        "getTransactionCount": ledger.get_transaction_count,
        "getVersion": ledger.get_version,
        "isBlockhashValid": ledger.is_blockhash_valid,
        "getFeeForMessage": submissions.get_fee_for_message,
        "giovang_faucet": submissions.giovang_faucet,
        "requestAirdrop": submissions.request_airdrop,
        "sendTransaction": submissions.send_transaction,
        "simulateTransaction": submissions.simulate_transaction,
    }


class Dispatcher:
    """Answers JSON-RPC requests from a table of methods."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = methods
        self._log = get_logger(__name__)

    def answer(self, body: bytes | str) -> bytes | None:
        """Answer one request or batch; None where it held notifications only.

        Raises NetworkBrokenError, which no caller can be told about in a useful way.
        """
        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError:
            return _dump(_failure(None, RpcError(RpcError.PARSE, "Parse error")))
        if not isinstance(request, list):
            answer = self._answer_one(request)
            return None if answer is None else _dump(answer)
        if not request or len(request) > MAX_BATCH:
            reason = "Invalid request" if not request else f"Batch too large; max {MAX_BATCH}"
            return _dump(_failure(None, RpcError(RpcError.INVALID_REQUEST, reason)))
        answers = [answer for each in request if (answer := self._answer_one(each)) is not None]
        return _dump(answers) if answers else None

    def _answer_one(self, request: Json) -> dict[str, Json] | None:
        if not isinstance(request, dict):
            return _failure(None, RpcError(RpcError.INVALID_REQUEST, "Invalid request"))
        request_id = request.get("id")
        try:
            result = self._call(request)
        except RpcError as error:
            return _failure(request_id, error) if _expects_answer(request) else None
        except NetworkBrokenError:
            raise
        except Exception:  # noqa: BLE001 - the edge of the process: callers get one error
            self._log.exception("method failed", method=request.get("method"))
            internal = RpcError(RpcError.INTERNAL, "Internal error")
            return _failure(request_id, internal) if _expects_answer(request) else None
        if not _expects_answer(request):
            return None
        return {"jsonrpc": "2.0", "result": result, "id": request_id}

    def _call(self, request: dict[str, Json]) -> Json:
        name, params = request.get("method"), request.get("params")
        request_id = request.get("id")
        sound_id = request_id is None or (
            isinstance(request_id, str | int | float) and not isinstance(request_id, bool)
        )
        if request.get("jsonrpc") != "2.0" or not isinstance(name, str) or not sound_id:
            raise RpcError(RpcError.INVALID_REQUEST, "Invalid request")
        method = self._methods.get(name)
        if method is None:
            raise RpcError(RpcError.METHOD_NOT_FOUND, "Method not found")
        if params is None:
            params = []
        if not isinstance(params, list):
            raise invalid_params("Invalid params: expected a list")
        if len(params) > _MAX_PARAMETERS:
            raise invalid_params("Invalid params: too many parameters")
        return method(Parameters(params))


def _expects_answer(request: dict[str, Json]) -> bool:
    # A request without an id is a notification; an unsound one is answered all the same.
    return "id" in request or not isinstance(request.get("method"), str)


def _failure(request_id: Json, error: RpcError) -> dict[str, Json]:
    sound = isinstance(request_id, str | int | float) and not isinstance(request_id, bool)
    return {"jsonrpc": "2.0", "error": error.as_json(), "id": request_id if sound else None}


def _dump(answer: Json) -> bytes:
    return orjson.dumps(answer)

"""JSON-RPC methods about accounts, balances and tokens.

All read one `View`, so that an answer is the ledger at one slot. Scans are bounded: what would list
too much is refused with the validator's scan error.
"""

import base64
import binascii
from typing import Final

from solders.account import Account
from solders.pubkey import Pubkey

from infra.localnet import base58
from infra.localnet.errors import Json, RpcError, invalid_params
from infra.localnet.network import Network, View
from infra.localnet.parameters import Config, Parameters, read_pubkey, read_u64
from infra.localnet.rendering import render_account
from infra.localnet.runtime import Runtime
from infra.localnet.tokens import TOKEN_PROGRAMS, read_holding, read_mint, ui_token_amount

_MAX_MULTIPLE: Final = 100
_MAX_FILTERS: Final = 4
_MAX_COMPARED_BYTES: Final = 128
_MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024


def with_context(slot: int, value: Json) -> dict[str, Json]:
    """The answer form that says at which slot it holds."""
    return {"context": {"slot": slot}, "value": value}


class AccountMethods:
    """Each public method answers the RPC call of the same name in camel case."""

    def __init__(self, network: Network, runtime: Runtime) -> None:
        self._network = network
        self._runtime = runtime

    def get_account_info(self, params: Parameters) -> Json:
        """One account, or null."""
        address, config = params.pubkey(0), params.config(1)
        view = self._view(config)
        return with_context(view.slot, _show(view, address, config, "binary"))

    def get_multiple_accounts(self, params: Parameters) -> Json:
        """Up to 100 accounts, each or null, in the order asked for."""
        addresses = [read_pubkey(text) for text in params.texts(0, _MAX_MULTIPLE)]
        config = params.config(1)
        view = self._view(config)
        shown = [_show(view, address, config, "base64") for address in addresses]
        return with_context(view.slot, shown)

    def get_balance(self, params: Parameters) -> Json:
        """Lamports of an account; nothing is zero."""
        address = params.pubkey(0)
        view = self._view(params.config(1))
        account = view.account(address)
        return with_context(view.slot, 0 if account is None else account.lamports)

    def get_program_accounts(self, params: Parameters) -> Json:
        """Accounts of a program that pass all filters."""
        program, config = params.pubkey(0), params.config(1)
        filters = _read_filters(config)
        view = self._view(config)
        matching = [
            (address, account)
            for address, account in view.program_accounts(program)
            if all(one.accepts(account) for one in filters)
        ]
        shown = _show_all(view, matching, config, "binary")
        return with_context(view.slot, shown) if config.flag("withContext") else shown

    def get_token_accounts_by_owner(self, params: Parameters) -> Json:
        """Token accounts of an owner, of one mint or of one token program."""
        owner, selector, config = params.pubkey(0), params.config(1), params.config(2)
        view = self._view(config)
        mint, program = self._read_selector(view, selector)
        matching = []
        for address, account in view.token_accounts(owner):
            holding = read_holding(account)
            if holding is not None and (holding.mint == mint or account.owner == program):
                matching.append((address, account))
        return with_context(view.slot, _show_all(view, matching, config, "binary"))

    def get_token_account_balance(self, params: Parameters) -> Json:
        """Amount that a token account holds."""
        address = params.pubkey(0)
        view = self._view(params.config(1))
        account = view.account(address)
        if account is None:
            raise invalid_params("Invalid param: could not find account")
        holding = read_holding(account)
        if holding is None:
            raise invalid_params("Invalid param: not a Token account")
        mint = read_mint(view.account(holding.mint))
        if mint is None:
            raise invalid_params("Invalid param: could not find mint")
        return with_context(view.slot, ui_token_amount(holding.amount_minor, mint.decimals))

    def get_token_supply(self, params: Parameters) -> Json:
        """Amount of a mint in existence."""
        address = params.pubkey(0)
        view = self._view(params.config(1))
        account = view.account(address)
        if account is None:
            raise invalid_params("Invalid param: could not find account")
        mint = read_mint(account)
        if mint is None:
            raise invalid_params("Invalid param: not a Token mint")
        return with_context(view.slot, ui_token_amount(mint.supply, mint.decimals))

    def get_minimum_balance_for_rent_exemption(self, params: Parameters) -> Json:
        """Lamports that exempt an account of so many bytes from rent."""
        data_bytes = params.integer(0)
        if data_bytes > 10 * 1024 * 1024:
            raise invalid_params("Invalid params: an account holds at most 10 MiB")
        return self._runtime.minimum_balance(data_bytes)

    def _view(self, config: Config) -> View:
        config.slot(self._network)  # Refuses a slot below minContextSlot.
        return self._network.view(config.commitment())

    @staticmethod
    def _read_selector(view: View, selector: Config) -> tuple[Pubkey | None, Pubkey | None]:
        given = {name: value for name, value in selector.values.items() if value is not None}
        if set(given) == {"mint"} and isinstance(given["mint"], str):
            mint = read_pubkey(given["mint"])
            if read_mint(view.account(mint)) is None:
                raise invalid_params("Invalid param: could not find mint")
            return mint, None
        if set(given) == {"programId"} and isinstance(given["programId"], str):
            program = read_pubkey(given["programId"])
            if program not in TOKEN_PROGRAMS:
                raise invalid_params("Invalid param: unrecognized Token program id")
            return None, program
        raise invalid_params("Invalid params: give either mint or programId")


class _Filter:
    """One of getProgramAccounts' filters."""

    def __init__(self, value: Json) -> None:
        if not isinstance(value, dict) or len(value) != 1:
            raise invalid_params("Invalid params: a filter is an object with one key")
        self._data_bytes: int | None = None
        self._offset, self._bytes = 0, b""
        if "dataSize" in value:
            self._data_bytes = read_u64(value["dataSize"], "dataSize")
        elif isinstance(value.get("memcmp"), dict):
            self._offset = read_u64(value["memcmp"].get("offset"), "memcmp.offset")
            self._bytes = _compared_bytes(value["memcmp"])
        else:
            raise invalid_params("Invalid params: a filter is dataSize or memcmp")

    def accepts(self, account: Account) -> bool:
        data = account.data
        if self._data_bytes is not None:
            return len(data) == self._data_bytes
        return data[self._offset : self._offset + len(self._bytes)] == self._bytes


def _read_filters(config: Config) -> list[_Filter]:
    values = config.values.get("filters")
    if values is None:
        return []
    if not isinstance(values, list):
        raise invalid_params("Invalid params: filters must be a list")
    if len(values) > _MAX_FILTERS:
        raise invalid_params(f"Too many filters provided; max {_MAX_FILTERS}")
    return [_Filter(value) for value in values]


def _compared_bytes(memcmp: dict[str, Json]) -> bytes:
    given = memcmp.get("bytes")
    try:
        if isinstance(given, list):
            compared = bytes(given)
        elif not isinstance(given, str):
            raise invalid_params("Invalid params: memcmp.bytes must be a string or a list")
        elif memcmp.get("encoding") == "base64":
            compared = base64.b64decode(given, validate=True)
        else:
            compared = base58.decode(given)
    except (binascii.Error, ValueError, TypeError) as error:
        raise invalid_params(f"Invalid param: cannot decode memcmp.bytes: {error}") from error
    if len(compared) > _MAX_COMPARED_BYTES:
        raise invalid_params("Invalid param: memcmp.bytes is too large")
    return compared


def _show(view: View, address: Pubkey, config: Config, encoding: str) -> Json:
    account = view.account(address)
    if account is None:
        return None
    return render_account(account, config.account_encoding(encoding), view, config.data_slice())


def _show_all(
    view: View, accounts: list[tuple[Pubkey, Account]], config: Config, encoding: str
) -> list[dict[str, Json]]:
    if sum(len(account.data) for _, account in accounts) > _MAX_ANSWER_BYTES:
        raise RpcError(
            RpcError.SCAN, "scan aborted: The accumulated scan results exceeded the limit"
        )
    chosen, data_slice = config.account_encoding(encoding), config.data_slice()
    return [
        {"pubkey": str(address), "account": render_account(account, chosen, view, data_slice)}
        for address, account in accounts
    ]

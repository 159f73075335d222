"""Errors of the local network: what stops the process, what a caller is told, and in whose words.

`LocalnetError` stops the process; `RpcError` becomes one JSON-RPC error object. Codes and sentences
are those of the validator's RPC, so that a client matches them unchanged.
"""

from typing import Any, Final, TypeAlias

Json: TypeAlias = Any  # A JSON value; its shape is the RPC's, not ours.


class LocalnetError(Exception):
    """Root of the room's errors; unhandled, it ends the process."""


class StateError(LocalnetError):
    """The state folder cannot be used; the message says why and what to do."""


class NetworkBrokenError(LocalnetError):
    """The runtime moved on but its journal did not: only a restart makes the two agree again."""


class RpcError(LocalnetError):
    """One JSON-RPC error object: `code`, `message` and optional `data`."""

    PARSE: Final = -32700
    INVALID_REQUEST: Final = -32600
    METHOD_NOT_FOUND: Final = -32601
    INVALID_PARAMS: Final = -32602
    INTERNAL: Final = -32603
    PREFLIGHT_FAILURE: Final = -32002
    SIGNATURE_VERIFICATION: Final = -32003
    BLOCK_NOT_AVAILABLE: Final = -32004
    NODE_UNHEALTHY: Final = -32005
    SCAN: Final = -32012
    UNSUPPORTED_VERSION: Final = -32015
    MIN_CONTEXT_SLOT: Final = -32016

    def __init__(self, code: int, message: str, data: Json = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data

    def as_json(self) -> dict[str, Json]:
        """The error object of a JSON-RPC response."""
        body: dict[str, Json] = {"code": self.code, "message": self.message}
        if self.data is not None:
            body["data"] = self.data
        return body


def invalid_params(message: str) -> RpcError:
    """Build the error for parameters that cannot be understood."""
    return RpcError(RpcError.INVALID_PARAMS, message)


def describe(err: Json) -> str:
    """Put a runtime error, in its JSON form, into the sentence the validator uses.

    `err` is `"BlockhashNotFound"` or `{"InstructionError": [0, {"Custom": 1}]}`; a name this table
    does not know is returned as it is.
    """
    if isinstance(err, str):
        return _TRANSACTION_ERRORS.get(err, err)
    if isinstance(err, dict) and len(err) == 1:
        name, detail = next(iter(err.items()))
        if name == "InstructionError":
            return f"Error processing Instruction {detail[0]}: {_describe_instruction(detail[1])}"
        if name == "DuplicateInstruction":
            return f"Transaction contains a duplicate instruction ({detail}) that is not allowed"
        if name == "InsufficientFundsForRent":
            return (
                f"Transaction results in an account ({detail['account_index']}) "
                "with insufficient funds for rent"
            )
        if name == "ProgramExecutionTemporarilyRestricted":
            return (
                "Execution of the program referenced by account at index "
                f"{detail['account_index']} is temporarily restricted."
            )
    return str(err)


def _describe_instruction(err: Json) -> str:
    if isinstance(err, str):
        return _INSTRUCTION_ERRORS.get(err, err)
    if isinstance(err, dict) and "Custom" in err:
        return f"custom program error: {err['Custom']:#x}"
    if isinstance(err, dict) and "BorshIoError" in err:
        return f"Failed to serialize or deserialize account data: {err['BorshIoError']}"
    return str(err)


_TRANSACTION_ERRORS: Final = {
    "AccountInUse": "Account in use",
    "AccountLoadedTwice": "Account loaded twice",
    "AccountNotFound": "Attempt to debit an account but found no record of a prior credit.",
    "ProgramAccountNotFound": "Attempt to load a program that does not exist",
    "InsufficientFundsForFee": "Insufficient funds for fee",
    "InvalidAccountForFee": "This account may not be used to pay transaction fees",
    "AlreadyProcessed": "This transaction has already been processed",
    "BlockhashNotFound": "Blockhash not found",
    "CallChainTooDeep": "Loader call chain is too deep",
    "MissingSignatureForFee": "Transaction requires a fee but has no signature present",
    "InvalidAccountIndex": "Transaction contains an invalid account reference",
    "SignatureFailure": "Transaction did not pass signature verification",
    "InvalidProgramForExecution": "This program may not be used for executing instructions",
    "SanitizeFailure": "Transaction failed to sanitize accounts offsets correctly",
    "UnsupportedVersion": "Transaction version is unsupported",
    "InvalidWritableAccount": "Transaction loads a writable account that cannot be written",
    "TooManyAccountLocks": "Transaction locked too many accounts",
    "AddressLookupTableNotFound": "Transaction loads an address table account that doesn't exist",
    "InvalidAddressLookupTableOwner": (
        "Transaction loads an address table account with an invalid owner"
    ),
    "InvalidAddressLookupTableData": (
        "Transaction loads an address table account with invalid data"
    ),
    "InvalidAddressLookupTableIndex": "Transaction address table lookup uses an invalid index",
    "InvalidRentPayingAccount": (
        "Transaction leaves an account with a lower balance than rent-exempt minimum"
    ),
    "MaxLoadedAccountsDataSizeExceeded": ("Transaction exceeded max loaded accounts data size cap"),
    "InvalidLoadedAccountsDataSizeLimit": (
        "LoadedAccountsDataSizeLimit set for transaction must be greater than 0."
    ),
    "UnbalancedTransaction": ("Sum of account balances before and after transaction do not match"),
    "ProgramCacheHitMaxLimit": "Program cache hit max limit",
}

_INSTRUCTION_ERRORS: Final = {
    "GenericError": "generic instruction error",
    "InvalidArgument": "invalid program argument",
    "InvalidInstructionData": "invalid instruction data",
    "InvalidAccountData": "invalid account data for instruction",
    "AccountDataTooSmall": "account data too small for instruction",
    "InsufficientFunds": "insufficient funds for instruction",
    "IncorrectProgramId": "incorrect program id for instruction",
    "MissingRequiredSignature": "missing required signature for instruction",
    "AccountAlreadyInitialized": "instruction requires an uninitialized account",
    "UninitializedAccount": "instruction requires an initialized account",
    "UnbalancedInstruction": ("sum of account balances before and after instruction do not match"),
    "ModifiedProgramId": "instruction illegally modified the program id of an account",
    "ExternalAccountLamportSpend": (
        "instruction spent from the balance of an account it does not own"
    ),
    "ExternalAccountDataModified": "instruction modified data of an account it does not own",
    "ReadonlyLamportChange": "instruction changed the balance of a read-only account",
    "ReadonlyDataModified": "instruction modified data of a read-only account",
    "DuplicateAccountIndex": "instruction contains duplicate accounts",
    "NotEnoughAccountKeys": "insufficient account keys for instruction",
    "AccountDataSizeChanged": (
        "program other than the account's owner changed the size of the account data"
    ),
    "AccountNotExecutable": "instruction expected an executable account",
    "AccountBorrowFailed": (
        "instruction tries to borrow reference for an account which is already borrowed"
    ),
    "InvalidError": "program returned invalid error code",
    "UnsupportedProgramId": "Unsupported program id",
    "CallDepth": "Cross-program invocation call depth too deep",
    "MissingAccount": "An account required by the instruction is missing",
    "ReentrancyNotAllowed": "Cross-program invocation reentrancy not allowed for this instruction",
    "MaxSeedLengthExceeded": "Length of the seed is too long for address generation",
    "InvalidSeeds": "Provided seeds do not result in a valid address",
    "InvalidRealloc": "Failed to reallocate account data",
    "ComputationalBudgetExceeded": "Computational budget exceeded",
    "PrivilegeEscalation": "Cross-program invocation with unauthorized signer or writable account",
    "ProgramEnvironmentSetupFailure": "Failed to create program execution environment",
    "ProgramFailedToComplete": "Program failed to complete",
    "ProgramFailedToCompile": "Program failed to compile",
    "Immutable": "Account is immutable",
    "IncorrectAuthority": "Incorrect authority provided",
    "AccountNotRentExempt": "An account does not have enough lamports to be rent-exempt",
    "InvalidAccountOwner": "Invalid account owner",
    "ArithmeticOverflow": "Program arithmetic overflowed",
    "UnsupportedSysvar": "Unsupported sysvar",
    "IllegalOwner": "Provided owner is not allowed",
}

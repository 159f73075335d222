"""The network's memory on disk: every landed Solana transaction and every account it touched.

One unit of work in SQLite per landed submission (WAL, synchronous=NORMAL), committed before the
caller is answered: what was answered survives `kill -9`, what was not answered left nothing. A
crash of the whole machine may lose the last commits but never tears one apart. A folder that
another process holds, or one written by another schema, is refused with a `StateError`.
"""

import fcntl
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import orjson
from solders.account import Account
from solders.pubkey import Pubkey

from infra.localnet.errors import Json, StateError
from infra.localnet.tokens import read_holding

_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE identity (id INTEGER PRIMARY KEY CHECK (id = 1), seed BLOB NOT NULL) STRICT;
CREATE TABLE segments (
    id INTEGER PRIMARY KEY, first_slot INTEGER NOT NULL, started_at_ms INTEGER NOT NULL,
    slot_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE accounts (
    address BLOB PRIMARY KEY, lamports INTEGER NOT NULL, program BLOB NOT NULL,
    executable INTEGER NOT NULL, token_owner BLOB, data BLOB NOT NULL
) STRICT;
CREATE INDEX accounts_by_program ON accounts (program);
CREATE INDEX accounts_by_token_owner ON accounts (token_owner) WHERE token_owner IS NOT NULL;
CREATE TABLE landed (
    sequence INTEGER PRIMARY KEY, signature BLOB NOT NULL UNIQUE,
    message_hash BLOB NOT NULL UNIQUE, slot INTEGER NOT NULL, err TEXT, memo TEXT,
    wire BLOB NOT NULL, meta BLOB NOT NULL
) STRICT;
CREATE INDEX landed_by_slot ON landed (slot);
CREATE TABLE mentions (
    address BLOB NOT NULL, sequence INTEGER NOT NULL, PRIMARY KEY (address, sequence)
) STRICT, WITHOUT ROWID;
"""
_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA cache_size = -16384",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA busy_timeout = 5000",
)
_SELECT_LANDED: Final = "SELECT sequence, signature, slot, err, memo, wire, meta FROM landed "
_SELECT_MENTIONS: Final = """
SELECT landed.signature, landed.slot, landed.err, landed.memo
FROM mentions JOIN landed ON landed.sequence = mentions.sequence
WHERE mentions.address = ? AND mentions.sequence > ? AND mentions.sequence < ?
ORDER BY mentions.sequence DESC LIMIT ?
"""
_INSERT_LANDED: Final = """
INSERT INTO landed (sequence, signature, message_hash, slot, err, memo, wire, meta)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_UPSERT_ACCOUNT: Final = """
INSERT INTO accounts (address, lamports, program, executable, token_owner, data)
VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (address) DO UPDATE SET
    lamports = excluded.lamports, program = excluded.program, executable = excluded.executable,
    token_owner = excluded.token_owner, data = excluded.data
"""
# Rent is no longer collected: main-net shows this rent epoch for every rent-exempt account.
RENT_EXEMPT_EPOCH: Final = 2**64 - 1

Changes = Mapping[Pubkey, Account | None]


@dataclass(frozen=True, slots=True)
class Landed:
    """A Solana transaction that changed the ledger: it succeeded, or failed and paid its fee."""

    sequence: int
    signature: bytes
    slot: int
    err: Json
    memo: str | None
    wire: bytes
    meta: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Mention:
    """One line of an address's history."""

    signature: bytes
    slot: int
    err: Json
    memo: str | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time in which slots pass evenly: `first_slot` began at `started_at_ms`."""

    first_slot: int
    started_at_ms: int
    slot_ms: int


class Journal:
    """The SQLite file of one state folder, held by one process at a time."""

    def __init__(self, state_dir: Path) -> None:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _lock(state_dir / "lock")
        try:
            self._db = _open(state_dir / "journal.sqlite")
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Fold the write-ahead file into the journal and release the folder."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()
        self._lock.close()

    def seed(self) -> bytes | None:
        """The network's identity, or None before its genesis."""
        row = self._db.execute("SELECT seed FROM identity").fetchone()
        return None if row is None else bytes(row[0])

    def found(self, seed: bytes, accounts: Changes) -> None:
        """Write the genesis: identity and first accounts, in one unit of work."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.execute("INSERT INTO identity (id, seed) VALUES (1, ?)", (seed,))
            self._write_accounts(accounts)

    def segments(self) -> list[Segment]:
        """All stretches of time, oldest first."""
        rows = self._db.execute(
            "SELECT first_slot, started_at_ms, slot_ms FROM segments ORDER BY id"
        )
        return [Segment(*row) for row in rows]

    def add_segment(self, segment: Segment) -> None:
        """Begin a new stretch of time."""
        self._db.execute(
            "INSERT INTO segments (first_slot, started_at_ms, slot_ms) VALUES (?, ?, ?)",
            (segment.first_slot, segment.started_at_ms, segment.slot_ms),
        )

    def last(self) -> tuple[int, int]:
        """Sequence and slot of the newest landed submission; zeros before the first."""
        row = self._db.execute(
            "SELECT sequence, slot FROM landed ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        return (0, 0) if row is None else (row[0], row[1])

    def accounts(self) -> Iterator[tuple[Pubkey, Account]]:
        """Every account, programs last so that their data is there when they are loaded."""
        for address, *columns in self._db.execute(
            "SELECT address, lamports, program, executable, data FROM accounts ORDER BY executable"
        ):
            yield Pubkey(address), _account(columns)

    def record(
        self, landed: Landed, message_hash: bytes, mentioned: Sequence[Pubkey], changes: Changes
    ) -> None:
        """Commit one landed submission with its index and the accounts it changed."""
        err = None if landed.err is None else orjson.dumps(landed.err).decode()
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.execute(
                _INSERT_LANDED,
                (
                    landed.sequence,
                    landed.signature,
                    message_hash,
                    landed.slot,
                    err,
                    landed.memo,
                    landed.wire,
                    # Three rows to a page instead of one.
                    zlib.compress(orjson.dumps(landed.meta), level=1),
                ),
            )
            self._db.executemany(
                "INSERT INTO mentions (address, sequence) VALUES (?, ?)",
                [(address, landed.sequence) for address in {bytes(key) for key in mentioned}],
            )
            self._write_accounts(changes)

    def holds(self, signature: bytes, message_hash: bytes) -> bool:
        """Whether this signature, or the same message under another one, has landed before."""
        row = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM landed WHERE signature = ?)"
            " OR EXISTS (SELECT 1 FROM landed WHERE message_hash = ?)",
            (signature, message_hash),
        ).fetchone()
        return bool(row[0])

    def find(self, signature: bytes) -> Landed | None:
        """The landed submission with this signature."""
        row = self._db.execute(_SELECT_LANDED + "WHERE signature = ?", (signature,)).fetchone()
        if row is None:
            return None
        sequence, found, slot, err, memo, wire, meta = row
        return Landed(
            sequence,
            bytes(found),
            slot,
            _err(err),
            memo,
            bytes(wire),
            orjson.loads(zlib.decompress(meta)),
        )

    def status(self, signature: bytes) -> tuple[int, int, Json] | None:
        """Sequence, slot and error of a signature, without reading the whole record."""
        row = self._db.execute(
            "SELECT sequence, slot, err FROM landed WHERE signature = ?", (signature,)
        ).fetchone()
        return None if row is None else (row[0], row[1], _err(row[2]))

    def last_sequence_at(self, slot: int) -> int:
        """The newest sequence that landed in `slot` or before."""
        (sequence,) = self._db.execute(
            "SELECT sequence FROM landed WHERE slot <= ? ORDER BY slot DESC, sequence DESC LIMIT 1",
            (slot,),
        ).fetchone() or (0,)
        return int(sequence)

    def mentions(self, address: Pubkey, after: int, before: int, limit: int) -> list[Mention]:
        """History of an address, newest first, for `after < sequence < before`."""
        rows = self._db.execute(_SELECT_MENTIONS, (bytes(address), after, before, limit))
        return [Mention(bytes(sig), slot, _err(err), memo) for sig, slot, err, memo in rows]

    def token_accounts(self, owner: Pubkey, limit: int) -> list[Pubkey]:
        """Addresses of the token accounts that belong to `owner` at the tip."""
        rows = self._db.execute(
            "SELECT address FROM accounts WHERE token_owner = ? LIMIT ?", (bytes(owner), limit)
        )
        return [Pubkey(row[0]) for row in rows]

    def program_accounts(self, program: Pubkey, limit: int) -> list[Pubkey]:
        """Addresses of the accounts that belong to `program` at the tip."""
        rows = self._db.execute(
            "SELECT address FROM accounts WHERE program = ? LIMIT ?", (bytes(program), limit)
        )
        return [Pubkey(row[0]) for row in rows]

    def _write_accounts(self, changes: Changes) -> None:
        gone = [(bytes(address),) for address, account in changes.items() if account is None]
        self._db.executemany("DELETE FROM accounts WHERE address = ?", gone)
        rows = []
        for address, account in changes.items():
            if account is None:
                continue
            holding = read_holding(account)
            rows.append(
                (
                    bytes(address),
                    account.lamports,
                    bytes(account.owner),
                    int(account.executable),
                    None if holding is None else bytes(holding.owner),
                    account.data,
                )
            )
        self._db.executemany(_UPSERT_ACCOUNT, rows)


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in _PRAGMAS:
            database.execute(pragma)
        _prepare(database, path)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version == 0:
        database.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
        )
    elif version != _SCHEMA_VERSION:
        message = (
            f"{path.parent}: the journal has schema {version}, this program writes "
            f"{_SCHEMA_VERSION}; remove the folder to start a new network"
        )
        raise StateError(message)


def _account(columns: Sequence[Json]) -> Account:
    lamports, program, executable, data = columns
    return Account(lamports, data, Pubkey(program), bool(executable), RENT_EXEMPT_EPOCH)


def _err(text: str | None) -> Json:
    return None if text is None else orjson.loads(text)


def _lock(path: Path) -> IO[bytes]:
    handle = path.open("ab")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.close()
        message = f"{path.parent} is in use by another local network"
        raise StateError(message) from error
    return handle

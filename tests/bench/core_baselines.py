"""What the core is compared with: pgbench, sending the very statements the product sends.

The scripts are made of the product's own SQL, with values that pgbench computes, in the pipelines
in which the product sends it, prepared, by as many connections as the product uses, under the same
role and session limits. A parameter that has no value here ends the bench: then the product sends
something else than was thought.
"""

import itertools
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from api import database as product
from api.ledger import store as ledger
from api.payments import store as payments
from infra.stack.postgres import PostgresTree
from tests.bench.frame import BenchError
from tests.bench.postings_load import completion
from tests.fixtures.services import DatabaseServer

GRACE_S = 30.0
THREADS = 2
# About as long as the answer to a creation.
ANSWER_LETTERS = 1300

_PARAMETER = re.compile(r"%\((\w+)\)s")
_SPEED = re.compile(r"^tps = ([0-9.]+) \(without initial connection time\)", re.MULTILINE)
_DONE = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_ID = "lpad(:serial::text, 26, '0')"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run of pgbench did; `done` counts all of it, the warm-up too."""

    per_s: float
    done: int


@dataclass(frozen=True, slots=True)
class Pgbench:
    """pgbench against one server, its scripts in a folder of ours."""

    tree: PostgresTree
    server: DatabaseServer
    folder: Path
    runs: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def run(
        self, script: str, *, role: str, clients: int, warm_up_s: int, duration_s: int
    ) -> Measured:
        """Run a script for a while that does not count and then one that does."""
        file = self.folder / "script.sql"
        file.write_text(script)
        warm = self._run(file, role, clients, warm_up_s)
        counted = self._run(file, role, clients, duration_s)
        return Measured(counted.per_s, warm.done + counted.done)

    def _run(self, file: Path, role: str, clients: int, seconds: int) -> Measured:
        limits = " ".join(f"-c {name}={value}" for name, value in product._SESSION_SETTINGS.items())
        command = [self.tree.program("pgbench"), "--no-vacuum", "--protocol=prepared"]
        command += [f"--client={clients}", f"--jobs={THREADS}", f"--time={seconds}"]
        command += [f"--define=run={next(self.runs)}", "--define=n=0", f"--file={file}"]
        # The URL holds the password, so it goes by the environment.
        password = next(one.password for one in self.server.cluster.roles if one.name == role)
        answer = subprocess.run(
            command,
            env={
                **os.environ,
                "PGHOST": self.server.host,
                "PGPORT": str(self.server.port),
                "PGUSER": role,
                "PGPASSWORD": password,
                "PGDATABASE": self.server.cluster.database,
                "PGOPTIONS": limits,
            },
            capture_output=True,
            text=True,
            timeout=seconds + GRACE_S,
            check=False,
        )
        speed, done = _SPEED.search(answer.stdout), _DONE.search(answer.stdout)
        if answer.returncode != 0 or speed is None or done is None:
            raise BenchError(f"pgbench failed: {(answer.stderr or answer.stdout)[-2000:]}")
        return Measured(float(speed[1]), int(done[1]))


def creation(merchants: Sequence[str], keys: Sequence[str], order_id: str) -> str:
    """Return the script of a payment's creation; merchants and the ids of their keys agree.

    The product looks a key up once in ten seconds, which is left out.
    """
    values = {
        "merchant_id": _pick(merchants),
        "actor": _pick(keys),
        "request_id": f"('req_' || {_ID})",
        "key": "('pgbench-' || :serial::text)",
        "namespace": "'test'",
        "id": f"('pay_' || {_ID})",
        "mode": "'test'",
        "amount_minor": "250000",
        "currency": "'VND'",
        "asset": "'USDC'",
        "asset_amount_minor": "9560230",
        "rate": "26150",
        "rate_mid": "26150",
        "rate_source": "'file'",
        "chain": "'solana'",
        "recipient": "repeat('R', 44)",
        "mint": "repeat('M', 44)",
        "reference": f"('reference-' || {_ID})",
        "payer_country": "NULL",
        "description": "NULL",
        "order_id": f"'{order_id}'",
        "metadata": "'{}'",
        "lifetime": "interval '900 seconds'",
        "is_escrow": "false",
        "request_hash": "decode(repeat('ab', 32), 'hex')",
        "answer_status": "201",
        "answer": f"repeat('x', {ANSWER_LETTERS})",
    }
    return _script(len(merchants), [payments._WRITE_ONCE], values=values)


def posting(run: str, merchants: Sequence[str]) -> str:
    """Return the script that books the entry of tests.bench.postings_load."""
    legs = completion("", "").legs
    values = {
        "merchant_id": _pick(merchants),
        "actor": "'bench'",
        "request_id": "''",
        "id": f"('ent_' || {_ID})",
        "mode": "'test'",
        "kind": "'payment_completed'",
        "key": f"('pgbench-{run}-' || :serial::text)",
        "description": "''",
        "leg_merchants": "ARRAY["
        + ", ".join("NULL" if leg.merchant_id is None else _pick(merchants) for leg in legs)
        + "]",
        "leg_kinds": "'{" + ",".join(leg.kind for leg in legs) + "}'",
        "leg_assets": "'{" + ",".join(leg.asset for leg in legs) + "}'",
        "leg_amounts": "'{" + ",".join(str(leg.amount_minor) for leg in legs) + "}'",
        **dict.fromkeys(("payment_id", "payout_id", "refund_id", "posts_hold"), "NULL"),
    }
    # The product does so in a unit of work that names no merchant.
    begin = product._BEGIN_FOR.replace("%(merchant_id)s", "''")
    return _script(len(merchants), ["BEGIN", begin, ledger._POST_ENTRY, "COMMIT"], values=values)


def _script(merchants: int, *pipelines: Sequence[str], values: Mapping[str, str]) -> str:
    lines = [
        r"\set n :n + 1",
        r"\set serial (:run * 100 + :client_id) * 1000000000 + :n",
        rf"\set merchant 1 + (:client_id + :n) % {merchants}",
    ]
    for statements in pipelines:
        lines.append(r"\startpipeline")
        lines += [_filled(statement, values) + ";" for statement in statements]
        lines.append(r"\endpipeline")
    return "\n".join(lines) + "\n"


def _filled(statement: str, values: Mapping[str, str]) -> str:
    unknown = set(_PARAMETER.findall(statement)) - set(values)
    if unknown:
        raise BenchError(f"the product's statement has parameters unknown here: {sorted(unknown)}")
    return _PARAMETER.sub(lambda found: values[found[1]], statement).strip()


def _pick(choices: Sequence[str]) -> str:
    listed = ", ".join(f"'{choice}'" for choice in choices)
    return f"(ARRAY[{listed}]::text[])[:merchant::int]"

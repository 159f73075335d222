"""The core under load: payments created over HTTP, and entries booked hot and sharded."""

from dataclasses import dataclass
from typing import Any, Final

from api.security import api_key_digest
from tests.bench import core_baselines
from tests.bench.core_ground import (
    API_PROCESSES,
    CONNECTIONS_IN_ALL,
    CoreGround,
    core_ground,
)
from tests.bench.frame import BenchError, Options, Report, percentile
from tests.bench.ground import query
from tests.bench.postings_load import completion

NAME = "core"
SHOPS: Final = 8
CONNECTIONS: Final = 16
WORKERS: Final = 8
SHARDED_MERCHANTS: Final = 64
LOAD_GRACE_S: Final = 60.0
MOST_REQUESTS: Final = 1_000_000
HTTP_ORDER: Final = "bench-http"
PGBENCH_ORDER: Final = "bench-pgbench"

METHOD = """\
Real PostgreSQL and Redis with the product's settings (synchronous commit on), the API in {apis}
process, all on this machine, clients included; one measurement at a time, {warm_up_s} s of
warm-up and {measured_s} s that count, a checkpoint and VACUUM ANALYZE before each. Creations: POST
/api/v1/payments by {connections} keep-alive connections of {shops} merchants, each sending its next
request when the last is answered, every answer checked to be 201 and every key new; p50 and p99
from sending to the whole answer, in the client; the limit per key is set out of reach (its bucket
in Redis is asked all the same). Postings: {workers} connections book the five legs of a completed
payment through api.ledger.service.post_entry as giovang_watcher, one entry in one unit of work, on
one merchant (hot) or {sharded} merchants in turn (sharded); postings_…_per_s counts legs, which are
rows of ledger_postings, and entries_…_per_s the entries they are of, each a commit. pgbench sends
the same statements with values it computes itself, prepared, in the same pipelines, as the same
roles, by as many connections ({pool} as the API's pools have, {workers} for postings); whose a key
is, which the API asks once in ten seconds, is left out. cpu_percent is the processor time of a part
during the creations, of one core. At the end SQL counts that each creation that was answered exists
once, with one event, one audit row and one
kept answer, that each entry that was booked exists once, and that the books balance."""


@dataclass(frozen=True, slots=True)
class _Times:
    warm_up_s: int
    measured_s: int


SHORT: Final = _Times(warm_up_s=1, measured_s=4)
FULL: Final = _Times(warm_up_s=3, measured_s=22)


def run(options: Options) -> Report:
    """Measure payments created over HTTP and entries booked, beside pgbench's same statements."""
    times = SHORT if options.short else FULL
    with core_ground(options) as ground:
        shops = [ground.apis[0].shop() for _ in range(SHOPS)]
        figures: dict[str, float] = {}
        baselines: dict[str, float] = {}
        created = _creations(ground, options, times, [shop.key for shop in shops], figures)
        script = core_baselines.creation(
            [shop.merchant_id for shop in shops],
            [_key_id(ground, shop.key) for shop in shops],
            PGBENCH_ORDER,
        )
        options.progress("the same statements by pgbench")
        measured = _pgbench(ground, script, "giovang_api", CONNECTIONS_IN_ALL, times)
        baselines["pgbench_creates_per_s"] = measured.per_s
        _check_creations(ground, {HTTP_ORDER: created, PGBENCH_ORDER: measured.done})
        for api in ground.apis:
            api.stop()
        for name, merchants in (
            ("hot", ground.merchants(1)),
            ("sharded", ground.merchants(SHARDED_MERCHANTS)),
        ):
            _postings(
                ground,
                options,
                times,
                name=name,
                merchants=merchants,
                figures=figures,
                baselines=baselines,
            )
        _check_books(ground)
    return Report(
        bench=NAME,
        machine=options.machine,
        seed=options.seed,
        method=" ".join(METHOD.split()).format(
            warm_up_s=times.warm_up_s,
            measured_s=times.measured_s,
            apis=API_PROCESSES,
            connections=CONNECTIONS,
            shops=SHOPS,
            workers=WORKERS,
            sharded=SHARDED_MERCHANTS,
            pool=CONNECTIONS_IN_ALL,
        ),
        figures=figures,
        baselines=baselines,
        ratios={
            "http_vs_pgbench": figures["http_creates_per_s"] / baselines["pgbench_creates_per_s"],
            **{
                f"postings_{name}_vs_pgbench": figures[f"postings_{name}_per_s"]
                / baselines[f"pgbench_postings_{name}_per_s"]
                for name in ("hot", "sharded")
            },
        },
    )


def _creations(
    ground: CoreGround, options: Options, times: _Times, keys: list[str], figures: dict[str, float]
) -> int:
    """Create payments over HTTP; returns how many were answered, the warm-up's too."""
    options.progress(f"creating payments over HTTP by {CONNECTIONS} connections")
    ground.settle_down()
    before = ground.cpu_s()
    outcome = ground.load(
        "tests.bench.http_load",
        {
            "host": "127.0.0.1",
            "ports": [int(api.base_url.rpartition(":")[2]) for api in ground.apis],
            "keys": keys,
            "connections": CONNECTIONS,
            "warm_up_s": times.warm_up_s,
            "duration_s": times.measured_s,
            "most_requests": MOST_REQUESTS,
            "order_id": HTTP_ORDER,
        },
        times.warm_up_s + times.measured_s + LOAD_GRACE_S,
    )
    latencies: list[float] = outcome["latencies_ms"]
    figures["http_creates_per_s"] = len(latencies) / outcome["measured_s"]
    figures["http_create_p50_ms"] = percentile(latencies, 0.50)
    figures["http_create_p99_ms"] = percentile(latencies, 0.99)
    seconds = times.warm_up_s + times.measured_s
    used = {name: value - before[name] for name, value in ground.cpu_s().items()}
    used["client"] = outcome["cpu_s"]
    for name, value in used.items():
        figures[f"http_{name}_cpu_percent"] = 100 * value / seconds
    return int(outcome["created"])


def _postings(
    ground: CoreGround,
    options: Options,
    times: _Times,
    *,
    name: str,
    merchants: list[str],
    figures: dict[str, float],
    baselines: dict[str, float],
) -> None:
    options.progress(f"booking entries, {name}")
    ground.settle_down()
    outcome = ground.load(
        "tests.bench.postings_load",
        {
            "url": ground.ledger.url("giovang_watcher"),
            "run": name,
            "merchants": merchants,
            "workers": WORKERS,
            "warm_up_s": times.warm_up_s,
            "duration_s": times.measured_s,
        },
        times.warm_up_s + times.measured_s + LOAD_GRACE_S,
    )
    legs = len(completion("", "").legs)
    figures[f"entries_{name}_per_s"] = outcome["measured"] / times.measured_s
    figures[f"postings_{name}_per_s"] = legs * figures[f"entries_{name}_per_s"]
    options.progress(f"booking entries, {name}, by pgbench")
    script = core_baselines.posting(name, merchants)
    measured = _pgbench(ground, script, "giovang_watcher", WORKERS, times)
    baselines[f"pgbench_postings_{name}_per_s"] = legs * measured.per_s
    for prefix, booked in (("bench", outcome["booked"]), ("pgbench", measured.done)):
        found = _one(
            ground,
            "SELECT count(*) FROM ledger_entries WHERE idempotency_key LIKE %s",
            f"{prefix}-{name}-%",
        )
        if found != booked:
            raise BenchError(f"{booked} entries were booked ({prefix} {name}), {found} exist")


def _pgbench(
    ground: CoreGround, script: str, role: str, clients: int, times: _Times
) -> core_baselines.Measured:
    ground.settle_down()
    return ground.pgbench.run(
        script, role=role, clients=clients, warm_up_s=times.warm_up_s, duration_s=times.measured_s
    )


def _check_creations(ground: CoreGround, created: dict[str, int]) -> None:
    """Each payment exists once, with one event, one audit row; and one answer for all of them."""
    for order, count in created.items():
        found = query(
            ground.ledger_url,
            "SELECT count(*),"
            " count(*) FILTER (WHERE 1 = (SELECT count(*) FROM merchant_events AS e"
            "                             WHERE e.payment_id = p.id)"
            "              AND 1 = (SELECT count(*) FROM audit_logs AS a"
            "                       WHERE a.subject_id = p.id))"
            " FROM payments AS p WHERE order_id = %s",
            order,
        )[0]
        if found != (count, count):
            raise BenchError(f"{count} payments were created ({order}), in the database: {found}")
    answers = _one(ground, "SELECT count(*) FROM idempotency_keys")
    if answers != sum(created.values()):
        raise BenchError(f"{sum(created.values())} payments were created, {answers} answers kept")


def _key_id(ground: CoreGround, key: str) -> str:
    found = query(
        ground.ledger_url, "SELECT id FROM api_keys WHERE key_hash = %s", api_key_digest(key)
    )
    return str(found[0][0])


def _check_books(ground: CoreGround) -> None:
    unbalanced = _one(
        ground,
        "SELECT count(*) FROM (SELECT FROM ledger_postings GROUP BY entry_id, asset"
        " HAVING sum(amount_minor) <> 0) AS entry",
    )
    wrong = _one(
        ground,
        "SELECT count(*) FROM ledger_accounts AS a WHERE posted_minor <> (SELECT"
        " coalesce(sum(amount_minor), 0) FROM ledger_postings WHERE account_id = a.id)",
    )
    if unbalanced or wrong:
        raise BenchError(f"{unbalanced} entries and {wrong} accounts do not balance")


def _one(ground: CoreGround, statement: Any, *values: object) -> int:
    return int(query(ground.ledger_url, statement, *values)[0][0])

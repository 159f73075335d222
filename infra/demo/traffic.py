"""Live customers: each asks a shop's till for a payment over HTTP and pays it on the local network.

At most `MAX_VISITS` customers are under way at once, each with a deadline. One customer's trouble
is logged and ends that visit only; while the API or the chain is away, customers come at pauses
that double up to `MAX_BACK_OFF_S`, and the supervisor is told so. A number is used for one visit
only, also across restarts, because its idempotency key is made from it.
"""

import asyncio
import fcntl
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from solders.keypair import Keypair
from solders.pubkey import Pubkey

from infra import telemetry
from infra.demo.gateway import Gateway, GatewayAwayError, GatewayRefusedError, Shop
from infra.demo.ids import wallet
from infra.demo.settings import DemoError
from infra.demo.story import MINOR_PER_TOKEN
from infra.demo.visits import Conduct, Visit, pause_s, visit
from infra.demo.wallet import ChainAwayError, Invoice, Wallets

MAX_VISITS = 24
VISIT_TIMEOUT_S = 90.0
MAX_BACK_OFF_S = 30.0
EXPIRES_IN_S = 300
STOP_GRACE_S = 5.0
_ALIVE_EVERY_S = 2.0
_COMPLETION_TIMEOUT_S = 60.0
_NUMBER_FILE = "next-visit"

log = telemetry.get_logger(__name__)


@dataclass(slots=True)
class Traffic:
    """The simulator: a stream of customers until it is told to stop."""

    gateway: Gateway
    wallets: Wallets
    shops: tuple[Shop, ...]
    seed: int
    rate_per_minute: float
    state_dir: Path
    guest: Keypair | None = None
    report: Callable[[str], None] = field(default=lambda _: None)
    _stopping: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _away_since_visit: int = field(init=False, default=0)
    _counts: Counter[str] = field(init=False, default_factory=Counter)
    _under_way: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    def stop(self) -> None:
        """Ask for a clean end: nobody new comes, those at the till get a short grace."""
        self._stopping.set()

    async def run(self, *, max_visits: int | None = None) -> Counter[str]:
        """Let customers come until `stop`, or until `max_visits` came; returns what they did."""
        alive = asyncio.create_task(self._tell_alive())
        numbers = VisitNumbers(self.state_dir / _NUMBER_FILE, self.seed)
        came = 0
        try:
            if not self.rate_per_minute:
                await self._stopping.wait()
            while not self._stopping.is_set() and (max_visits is None or came < max_visits):
                if alive.done():
                    alive.result()
                if len(self._under_way) >= MAX_VISITS:
                    await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
                    continue
                number = numbers.take()
                now = datetime.now(UTC)
                self._begin(visit(self.seed, number, now))
                came += 1
                await self._pause(self._next_pause_s(number, now))
            await self._finish(None if max_visits is not None else STOP_GRACE_S)
        finally:
            alive.cancel()
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(alive, *self._under_way, return_exceptions=True)
        return self._counts

    def status(self) -> str:
        """One line for `giovang status`."""
        paid = sum(self._counts[key] for key in ("paid", "underpaid", "overpaid", "paid twice"))
        line = f"{self._counts['came']} customers, {paid} paid, {len(self._under_way)} at the till"
        if self._away_since_visit:
            line = f"API or chain away, waiting; {line}"
        return line

    def _next_pause_s(self, number: int, now: datetime) -> float:
        pause = pause_s(self.seed, number, now, self.rate_per_minute)
        if not self._away_since_visit:
            return pause
        back_off = min(MAX_BACK_OFF_S, 2.0 ** min(self._away_since_visit, 10))
        return max(pause, back_off * random.uniform(0.7, 1.0))

    def _begin(self, who: Visit) -> None:
        task = asyncio.create_task(self._serve(who), name=f"visit-{who.number}")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _serve(self, who: Visit) -> None:
        """Play one visit; whatever goes wrong is counted and logged, and ends this visit only."""
        self._counts["came"] += 1
        try:
            async with asyncio.timeout(VISIT_TIMEOUT_S):
                outcome = await self._play(who)
        except (GatewayAwayError, ChainAwayError, TimeoutError) as error:
            self._away_since_visit += 1
            outcome = "gave up"
            log.warning("visit given up", visit=who.number, reason=str(error) or "deadline")
        except GatewayRefusedError as error:
            outcome = "refused"
            log.warning("visit refused", visit=who.number, status=error.status, code=error.code)
        except Exception:
            # One odd answer must not end everybody's shopping.
            outcome = "broken"
            log.exception("visit broken", visit=who.number)
        else:
            self._away_since_visit = 0
        self._counts[outcome] += 1
        self.report(f"{who.profile.name}: {who.amount_vnd:,} VND in {who.asset}, {outcome}")

    async def _play(self, who: Visit) -> str:
        shop = next(shop for shop in self.shops if shop.profile.slug == who.profile.slug)
        payment = await self.gateway.create_payment(
            shop, _request(who), idempotency_key=f"demo-{self.seed}-{who.number}"
        )
        if who.conduct is Conduct.ABANDON:
            return "left"
        await asyncio.sleep(who.hesitates_s)
        invoice = Invoice(
            recipient=Pubkey.from_string(payment["recipient"]),
            mint=Pubkey.from_string(payment["mint"]),
            reference=Pubkey.from_string(payment["reference"]),
        )
        due = int(Decimal(payment["asset_amount"]) * MINOR_PER_TOKEN)
        sent = max(1, due * who.sent_permille // 1000)
        for _ in range(2 if who.conduct is Conduct.PAY_TWICE else 1):
            await self.wallets.pay(self._keys(who), invoice, sent)
        if who.conduct is Conduct.PAY_AND_RETURN:
            return await self._give_back(shop, who, payment["id"])
        return {
            Conduct.UNDERPAY: "underpaid",
            Conduct.OVERPAY: "overpaid",
            Conduct.PAY_TWICE: "paid twice",
        }.get(who.conduct, "paid")

    async def _give_back(self, shop: Shop, who: Visit, payment_id: str) -> str:
        """Wait for completion, then refund the whole amount."""
        async with asyncio.timeout(_COMPLETION_TIMEOUT_S):
            payment = await self.gateway.payment(shop, payment_id)
            while payment["status"] != "completed":
                await asyncio.sleep(1.0)
                payment = await self.gateway.payment(shop, payment_id)
        body = {"amount": str(who.amount_vnd), "reason": "khách đổi ý"}
        key = f"demo-{self.seed}-{who.number}-refund"
        await self.gateway.refund(shop, payment_id, body, idempotency_key=key)
        return "refunded"

    def _keys(self, who: Visit) -> Keypair:
        # The checkout demo's own wallet is one more regular of the shops.
        if self.guest is not None and who.customer_number == 0:
            return self.guest
        return wallet(self.seed, who.profile.slug, who.customer_number)

    async def _pause(self, seconds: float) -> None:
        await _within(self._stopping.wait(), seconds)

    async def _finish(self, grace_s: float | None) -> None:
        if self._under_way:
            limit = VISIT_TIMEOUT_S if grace_s is None else grace_s
            await asyncio.wait(self._under_way, timeout=limit)

    async def _tell_alive(self) -> None:
        while True:
            telemetry.notify_alive(self.status())
            await asyncio.sleep(_ALIVE_EVERY_S)


class VisitNumbers:
    """Numbers of visits, each given out once: across restarts, kills and processes side by side."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path.with_name(f"{path.name}-{seed}")
        self._lock = self._path.with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stored()  # a damaged file is named at the start, not at the first customer

    def take(self) -> int:
        """Return the next number, after storing that it is taken."""
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            number = self._stored()
            unfinished = self._path.with_suffix(".new")
            unfinished.write_text(f"{number + 1}\n")
            unfinished.replace(self._path)
        return number

    def _stored(self) -> int:
        try:
            return int(self._path.read_text())
        except FileNotFoundError:
            return 0
        except ValueError as error:
            raise DemoError(f"{self._path} is damaged; it should hold one number") from error


def _request(who: Visit) -> dict[str, Any]:
    body: dict[str, Any] = {
        "amount": str(who.amount_vnd),
        "currency": "VND",
        "asset": who.asset,
        "description": who.description,
        "order_id": f"{who.profile.slug}-live-{who.number}",
        "metadata": {"channel": "demo"},
        "expires_in_s": EXPIRES_IN_S,
    }
    if who.customer.country is not None:
        body["payer_country"] = who.customer.country
    return body


async def _within(wait: Awaitable[object], seconds: float) -> None:
    """Wait for something for at most `seconds`; running out of time is the ordinary case."""
    try:
        await asyncio.wait_for(wait, seconds)
    except TimeoutError:
        return

"""A troubled node: answers JSON-RPC from a real local network, as forks and faults have it.

What is asked about chain transactions (histories, statuses, slots, one chain transaction) is
answered by the forks; everything else goes to the network unchanged, balances among it. A chain
transaction is in the forks from when somebody first asks for a history that holds it. The network
itself is asked at confirmed, within a deadline; where it does not answer, nor does the node.
"""

from dataclasses import dataclass
from typing import Any, Final

import httpx
import orjson

from infra.localnet.errors import Json, RpcError
from infra.localnet.trouble_faults import Fault, Faults
from infra.localnet.trouble_forks import Forks, Landing

MAX_KNOWN_ADDRESSES: Final = 10_000
_UPSTREAM_DEADLINE_S: Final = 10.0
_MOST_LINES: Final = 1000
_MOST_PAGES: Final = 100


@dataclass(frozen=True, slots=True)
class Reply:
    """What a caller gets: a body and an HTTP status, after a while; None is no answer at all."""

    status: int
    body: bytes | None
    delay_ms: int = 0


_REFUSALS: Final = {
    Fault.BUSY: Reply(429, b"too many requests"),
    Fault.DOWN: Reply(503, b"no node is available"),
    Fault.GARBLED: Reply(200, b'{"jsonrpc": "2.0", "resu'),
    Fault.SILENT: Reply(200, None),
}


class TroubledNode:
    """One node's view of the forks; several nodes may share them, each with faults of its own."""

    def __init__(
        self, rpc_url: str, forks: Forks, faults: Faults, *, slot_ms: int, old: bool = False
    ) -> None:
        """`old`: what the network holds already is final; else it lands when first asked for."""
        self._rpc_url = rpc_url
        self._client = httpx.AsyncClient(timeout=_UPSTREAM_DEADLINE_S)
        self._forks = forks
        self._faults = faults
        self._slot_ms = slot_ms
        self._start = forks.tip
        self._old_until = 0
        self._takes_old = old
        self._finalized = forks.finalized
        self._lines: dict[str, Json] = {}
        self._histories: dict[str, list[str]] = {}

    async def close(self) -> None:
        """Let go of connections to the network."""
        await self._client.aclose()

    async def start(self) -> None:
        """Learn how far the network is; what it holds up to there is old."""
        if self._takes_old:
            self._old_until = await self._upstream("getSlot", [{"commitment": "confirmed"}])

    def enter(self) -> None:
        """Go on to the slot that the forks are in."""
        self._faults.enter(self._forks.tip - self._start)
        behind = self._forks.finalized - self._faults.lag_slots()
        # A node that lags stays where it is; it does not go back.
        self._finalized = max(self._finalized, behind)

    async def answer(self, body: bytes) -> Reply:
        """Answer one request or batch."""
        try:
            asked = orjson.loads(body)
        except orjson.JSONDecodeError:
            return await self._passed_on(body)
        first = asked[0] if isinstance(asked, list) and asked else asked
        method = str(first.get("method")) if isinstance(first, dict) else ""
        fault, delay_ms = self._faults.of_call(method)
        if fault in _REFUSALS:
            return _REFUSALS[fault]
        if fault in {Fault.BEHIND, Fault.ODD}:
            data = {"numSlotsBehind": 42} if fault is Fault.BEHIND else None
            error = RpcError(RpcError.NODE_UNHEALTHY, "Node is behind by 42 slots", data)
            return Reply(200, orjson.dumps(_failure(first, error)))
        try:
            if isinstance(asked, list):
                answers: Json = [await self._one(each) for each in asked]
            else:
                answers = await self._one(asked)
        except httpx.HTTPError as problem:
            return Reply(502, f"the network does not answer: {problem!r}".encode())
        return Reply(200, orjson.dumps(answers), delay_ms if fault is Fault.SLOW else 0)

    async def _one(self, asked: Json) -> Json:
        if not isinstance(asked, dict) or not isinstance(asked.get("params") or [], list):
            return await self._raw(asked)
        params = asked.get("params") or []
        try:
            match asked.get("method"):
                case "getSlot" | "getBlockHeight":
                    result: Json = self._position(_config(params, 0))
                case "getSignaturesForAddress" if params:
                    result = await self._signatures(str(params[0]), _config(params, 1))
                case "getTransaction" if params:
                    found = await self._raw(asked)
                    if found.get("result") is None:
                        return found
                    result = self._transaction(str(params[0]), found["result"], params)
                case "getSignatureStatuses" if params:
                    found = await self._raw(asked)
                    if "result" not in found:
                        return found
                    result = self._statuses(params[0], found["result"]["value"])
                case _:
                    return await self._raw(asked)
        except RpcError as error:
            return _failure(asked, error)
        return {"jsonrpc": "2.0", "result": result, "id": asked.get("id")}

    def _position(self, config: dict[str, Json]) -> int:
        commitment = config.get("commitment", "finalized")
        if commitment == "processed":
            return self._forks.tip
        return self._forks.confirmed if commitment == "confirmed" else self._finalized

    async def _signatures(self, address: str, config: dict[str, Json]) -> Json:
        await self._learn(address)
        visible = self._position(config)
        landings = [
            landing
            for signature in self._histories[address]
            if (landing := self._forks.landing(signature)) is not None
            and landing.slot is not None
            and landing.slot <= visible
            and not self._faults.hides(landing.ordinal)
        ]
        landings.sort(key=lambda one: (one.slot, one.order), reverse=True)
        names = [landing.signature for landing in landings]
        before, until = config.get("before"), config.get("until")
        if before is not None:
            # A node cannot page from a signature that it does not know.
            landings = landings[names.index(before) + 1 :] if before in names else []
            names = [landing.signature for landing in landings]
        if until in names:
            landings = landings[: names.index(until)]
        page = self._faults.reorder(landings[: config.get("limit", _MOST_LINES)])
        return [self._line(landing) for landing in page]

    def _line(self, landing: Landing) -> Json:
        upstream = self._lines[landing.signature]
        return {
            **upstream,
            "slot": landing.slot,
            "blockTime": self._block_time(landing, upstream.get("blockTime")),
            "confirmationStatus": self._status(landing),
        }

    def _transaction(self, signature: str, found: Json, params: list[Json]) -> Json:
        landing = self._forks.landing(signature)
        if landing is None:
            return found
        visible = self._position(_config(params, 1))
        gone = landing.slot is None or landing.slot > visible
        if gone or self._faults.cannot_read(landing.ordinal):
            return None
        block_time = self._block_time(landing, found.get("blockTime"))
        return {**found, "slot": landing.slot, "blockTime": block_time}

    def _statuses(self, signatures: Json, found: Json) -> Json:
        value = [
            self._status_of(signature, status)
            for signature, status in zip(signatures, found, strict=True)
        ]
        return {"context": {"slot": self._forks.tip}, "value": value}

    def _status_of(self, signature: str, status: Json) -> Json:
        landing = self._forks.landing(signature)
        if landing is None or status is None:
            return status
        if landing.slot is None or self._faults.cannot_read(landing.ordinal):
            return None
        said = self._status(landing)
        confirmations = None if said == "finalized" else self._forks.tip - landing.slot
        return {
            **status,
            "slot": landing.slot,
            "confirmations": confirmations,
            "confirmationStatus": said,
        }

    def _status(self, landing: Landing) -> str:
        slot = self._forks.tip if landing.slot is None else landing.slot
        if slot <= self._finalized:
            return "finalized"
        return "confirmed" if slot <= self._forks.confirmed else "processed"

    def _block_time(self, landing: Landing, first: int | None) -> int | None:
        """Return when a block was made: where it landed anew, as much later as its slot is."""
        if first is None or landing.slot is None:
            return first
        return first + (landing.slot - landing.first_slot) * self._slot_ms // 1000

    async def _learn(self, address: str) -> None:
        """Take what happened on an address into the forks, oldest first."""
        if address not in self._histories and len(self._histories) >= MAX_KNOWN_ADDRESSES:
            del self._histories[next(iter(self._histories))]
        known = self._histories.setdefault(address, [])
        news: list[Json] = []
        before: str | None = None
        for _ in range(_MOST_PAGES):
            config: dict[str, Json] = {"commitment": "confirmed", "limit": _MOST_LINES}
            if known:
                config["until"] = known[-1]
            if before is not None:
                config["before"] = before
            page = await self._upstream("getSignaturesForAddress", [address, config])
            news += page
            if len(page) < _MOST_LINES:
                break
            before = page[-1]["signature"]
        # Another caller may have learnt the same meanwhile.
        for line in reversed(news):
            signature = line["signature"]
            self._lines[signature] = line
            if signature not in known:
                known.append(signature)
            self._forks.register(signature, is_old=line["slot"] <= self._old_until)

    async def _upstream(self, method: str, params: list[Json]) -> Json:
        asked = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = await self._raw(asked)
        if "error" in answer:
            raise RpcError(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    async def _raw(self, asked: Json) -> Any:  # noqa: ANN401 - JSON
        answer = await self._client.post(self._rpc_url, json=asked)
        return orjson.loads(answer.content)

    async def _passed_on(self, body: bytes) -> Reply:
        try:
            answer = await self._client.post(
                self._rpc_url, content=body, headers={"content-type": "application/json"}
            )
        except httpx.HTTPError as problem:
            return Reply(502, f"the network does not answer: {problem!r}".encode())
        return Reply(answer.status_code, answer.content)


def _config(params: list[Json], place: int) -> dict[str, Json]:
    given = params[place] if len(params) > place else None
    return given if isinstance(given, dict) else {}


def _failure(asked: Json, error: RpcError) -> Json:
    request_id = asked.get("id") if isinstance(asked, dict) else None
    return {"jsonrpc": "2.0", "error": error.as_json(), "id": request_id}

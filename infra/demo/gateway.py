"""The demo's HTTP client: it registers the shops and then acts as their tills.

Merchants are created through the admin endpoints, which may be called again at any time. API keys
are shown once by the API, so they are kept in the demo's state folder (mode 0600) and made anew
when the file is missing or the API no longer accepts them. Every call has a deadline; an API that
is away raises GatewayAwayError, a refusal GatewayRefusedError with the API's own sentence.
"""

import asyncio
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

import httpx

from infra.demo.merchants import PROFILES, TIMEZONE, Profile
from infra.demo.settings import DemoError

CALL_TIMEOUT_S = 10.0
STAFF_ROLE = "owner"
_KEYS_FILE = "api-keys.json"
_KEYS_LOCK = "api-keys.lock"
_AWAY_STATUSES = {429, 502, 503, 504}


class GatewayAwayError(DemoError):
    """The API did not answer, or asked to come back later."""


class GatewayRefusedError(DemoError):
    """The API answered with an error that trying again does not cure."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"the API refused ({status} {code}): {detail}")
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Shop:
    """A registered demo merchant with the API key of its till."""

    profile: Profile
    merchant_id: str
    api_key: str


class Gateway:
    """Calls of the demo to the API; use as an asynchronous context manager."""

    def __init__(self, base_url: str, *, admin_key: str) -> None:
        self._client = httpx.AsyncClient(base_url=base_url, timeout=CALL_TIMEOUT_S)
        self._admin_key = admin_key

    async def __aenter__(self) -> "Gateway":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def wait_until_healthy(self, *, timeout_s: float) -> None:
        """Poll the health endpoint until it is well; GatewayAwayError at the deadline."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._healthy():  # noqa: ASYNC110 - another process gets well
                    await asyncio.sleep(0.25)
        except TimeoutError as error:
            raise GatewayAwayError(f"the API is not healthy after {timeout_s:g} s") from error

    async def register(self, *, seed: int, password: str, state_dir: Path) -> tuple[Shop, ...]:
        """Create or refresh all demo merchants, their logins and keys, and return them.

        History and traffic may do so at the same time: one of them at once has the keys' file.
        """
        lock = await asyncio.to_thread(_lock_keys, state_dir)
        with lock:
            return await self._register(seed, password, state_dir / _KEYS_FILE)

    async def _register(self, seed: int, password: str, keys_path: Path) -> tuple[Shop, ...]:
        known = _read_keys(keys_path)
        shops = []
        for profile in PROFILES:
            merchant_id = profile.merchant_id(seed)
            merchant = f"/api/v1/merchants/{quote(merchant_id, safe='')}"
            await self._admin("PUT", merchant, _merchant_body(profile))
            staff = {"email": profile.email, "password": password, "role": STAFF_ROLE}
            await self._admin("PUT", f"{merchant}/staff", staff)
            key = known.get(merchant_id)
            if key is None or not await self._accepts(key):
                made = await self._admin("POST", f"{merchant}/api-keys", {"mode": "test"})
                key = str(made["key"])
                known[merchant_id] = key
                _write_keys(keys_path, known)
            shops.append(Shop(profile, merchant_id, key))
        return tuple(shops)

    async def create_payment(
        self, shop: Shop, body: dict[str, Any], *, idempotency_key: str
    ) -> dict[str, Any]:
        """Ask for a payment as the shop's till does; returns the API's payment object."""
        return await self._call(
            "POST", "/api/v1/payments", shop.api_key, body, idempotency_key=idempotency_key
        )

    async def payment(self, shop: Shop, payment_id: str) -> dict[str, Any]:
        """Return a payment as the API shows it now."""
        return await self._call("GET", f"/api/v1/payments/{quote(payment_id)}", shop.api_key)

    async def refund(
        self, shop: Shop, payment_id: str, body: dict[str, Any], *, idempotency_key: str
    ) -> dict[str, Any]:
        """Give a completed payment back."""
        path = f"/api/v1/payments/{quote(payment_id)}/refunds"
        return await self._call("POST", path, shop.api_key, body, idempotency_key=idempotency_key)

    async def _healthy(self) -> bool:
        try:
            return (await self._client.get("/healthz")).is_success
        except httpx.HTTPError:
            return False

    async def _accepts(self, api_key: str) -> bool:
        try:
            await self._call("GET", "/api/v1/payments?limit=1", api_key)
        except GatewayRefusedError as error:
            if error.status in {401, 403}:
                return False
            raise
        return True

    async def _admin(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._call(method, path, self._admin_key, body)

    async def _call(
        self,
        method: str,
        path: str,
        bearer: str,
        body: dict[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {bearer}"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        try:
            answer = await self._client.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise GatewayAwayError(f"the API does not answer: {type(error).__name__}") from error
        if answer.status_code in _AWAY_STATUSES:
            raise GatewayAwayError(f"the API asks to come back later ({answer.status_code})")
        if not answer.is_success:
            raise _refusal(answer)
        if not answer.content:
            return {}
        value = answer.json()
        if not isinstance(value, dict):
            raise GatewayRefusedError(answer.status_code, "unexpected", "not a JSON object")
        return value


def _refusal(answer: httpx.Response) -> GatewayRefusedError:
    """Read a problem document (RFC 9457); anything else is named by its status alone."""
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        return GatewayRefusedError(answer.status_code, "unknown", answer.reason_phrase)
    detail = str(problem.get("detail") or problem.get("title") or answer.reason_phrase)
    return GatewayRefusedError(answer.status_code, str(problem.get("code", "unknown")), detail)


def _merchant_body(profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "trade": profile.trade,
        "timezone": TIMEZONE,
        "country": "VN",
        "fee_bps": profile.fee_bps,
    }


def _read_keys(path: Path) -> dict[str, str]:
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DemoError(f"{path} is damaged; remove it and the keys are made anew") from error
    return {str(name): str(key) for name, key in stored.items()}


def _lock_keys(state_dir: Path) -> TextIO:
    """Wait for the lock on the keys' file; closing what is returned gives it back."""
    state_dir.mkdir(parents=True, exist_ok=True)
    lock = (state_dir / _KEYS_LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _write_keys(path: Path, keys: dict[str, str]) -> None:
    """Replace the file in one step, readable by its owner only from the first byte on."""
    unfinished = path.with_suffix(".new")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(keys, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)

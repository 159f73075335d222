"""Who is asking: the dependencies by which routes demand a caller with a scope.

Everything after them runs under the caller's row-level security. A request without a valid key or
session is NotAuthenticated and counts against its client's address; one whose scopes do not reach
far enough is NotPermitted.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, cast

from fastapi import Request

from api import idempotency
from api.database import Database, Identity
from api.errors import FieldError, InvalidRequest, NotAuthenticated, NotPermitted
from api.people import store
from api.people.known_keys import KnownKeys
from api.people.model import BOOTSTRAP_SCOPES, ROLE_SCOPES, Caller, Scope
from api.people.sessions import Sessions
from api.security import KEY_PREFIXES, Mode, SessionClaims, api_key_digest, same_secret
from api.settings import ApiSettings
from api.web import (
    bearer_of,
    charge_address,
    database_of,
    operator_of,
    proved_session,
    request_id_of,
)

CallerDependency = Callable[[Request], Awaitable[Caller]]
D = TypeVar("D", bound=CallerDependency)

KEY_SCHEME: Final = "API key"
SESSION_SCHEME: Final = "Session"
ADMIN_KEY_SCHEME: Final = "Admin key"
LIVE_TOKEN_SCHEME: Final = "Live token"  # noqa: S105 - a name
_ADMIN_KEY_CALLER: Final = "admin"


def sessions_of(request: Request) -> Sessions:
    """Return what this process knows about sessions."""
    return cast("Sessions", request.app.state.sessions)


def caller_with(scope: Scope, *, at_once: bool = False) -> CallerDependency:
    """Return a dependency that gives who speaks for a merchant with this scope: a key or staff.

    A key looked up lately is believed, and proved by the unit of work that begins for it. A route
    that begins none has it proved `at_once`.
    """

    async def caller(request: Request) -> Caller:
        token = bearer_of(request)
        if token.startswith(KEY_PREFIXES):
            found = await _key_caller(request, token, at_once=at_once)
        else:
            found = await _person(request, token)
        if found.merchant_id is None:
            raise NotPermitted("an admin speaks for no merchant; see the addresses for admins")
        return _reaching(found, scope)

    return _described(caller, scope, KEY_SCHEME, SESSION_SCHEME)


def person_with(scope: Scope) -> CallerDependency:
    """Return a dependency that gives a person with this scope, of staff or an admin: never a key.

    Of an admin, `merchant_id` is None.
    """

    async def person(request: Request) -> Caller:
        token = bearer_of(request)
        if token.startswith(KEY_PREFIXES):
            await _key_caller(request, token, at_once=True)
            raise NotPermitted("this takes a person's session, not a key")
        return _reaching(await _person(request, token), scope)

    return _described(person, scope, SESSION_SCHEME)


def admin_with(scope: Scope) -> CallerDependency:
    """Return a dependency that gives an admin whose second factor is confirmed.

    The admin key of the environment is one too, for what brings the first merchants and people in.
    """

    async def admin(request: Request) -> Caller:
        token = bearer_of(request)
        settings = cast("ApiSettings", request.app.state.settings)
        if same_secret(token, settings.admin_key.get_secret_value()):
            return _reaching(
                Caller(
                    actor=_ADMIN_KEY_CALLER,
                    kind="admin",
                    merchant_id=None,
                    merchant_name="",
                    mode=_mode(request),
                    scopes=BOOTSTRAP_SCOPES,
                    role="admin",
                ),
                scope,
            )
        if token.startswith(KEY_PREFIXES):
            await charge_address(request)
            raise NotAuthenticated("this is for admins: send an admin's session")
        found = await _person(request, token)
        if found.kind != "admin":
            raise NotPermitted("this is for admins")
        return _reaching(found, scope)

    schemes = [SESSION_SCHEME]
    if scope in BOOTSTRAP_SCOPES:
        schemes.append(ADMIN_KEY_SCHEME)
    return _described(admin, scope, *schemes)


def any_session(*, second_factor: bool = True) -> Callable[[Request], Awaitable[SessionClaims]]:
    """Return a dependency that gives the session of the request, of whoever it is.

    With `second_factor` an admin who has not confirmed theirs is refused.
    """

    async def session(request: Request) -> SessionClaims:
        claims = await _session(request, bearer_of(request))
        if second_factor:
            _demand_second_factor(claims)
        return claims

    session.security = (SESSION_SCHEME,)  # type: ignore[attr-defined]
    return session


def identity_of(request: Request, caller: Caller) -> Identity:
    """Return on whose behalf the units of work of this request run."""
    return acting_for(request, caller, caller.merchant_id)


def acting_for(request: Request, caller: Caller, merchant_id: str | None) -> Identity:
    """Return the identity of a caller who acts on this merchant's rows and on no others."""
    return Identity(caller.actor, merchant_id, request_id_of(request))


def once(caller: Caller, key: str, digest: bytes) -> idempotency.Request:
    """Return the idempotent request of a caller: its key counts within the mode.

    An admin's keys are not the merchant's, though they act on the merchant's rows.
    """
    namespace = f"admin.{caller.mode}" if caller.kind == "admin" else caller.mode
    return idempotency.Request(key, digest, namespace)


def database_for(request: Request, caller: Caller) -> Database:
    """Return the pool whose role reaches as far as the caller: the operator's for an admin."""
    return operator_of(request) if caller.kind == "admin" else database_of(request)


async def _key_caller(request: Request, token: str, *, at_once: bool) -> Caller:
    digest = api_key_digest(token)
    known_keys = cast("KnownKeys", request.app.state.known_keys)
    known = None if at_once else known_keys.find(digest)
    if known is not None:
        return known
    holder = await store.key_holder(database_of(request), digest)
    if holder is None:
        await charge_address(request)
        raise NotAuthenticated("this API key is unknown or revoked")
    caller = Caller(
        actor=holder.key_id,
        kind="key",
        merchant_id=holder.merchant_id,
        merchant_name=holder.merchant_name,
        mode=holder.mode,
        scopes=frozenset(holder.scopes),
        role="key",
    )
    known_keys.remember(digest, caller)
    return caller


async def _session(request: Request, token: str) -> SessionClaims:
    """Return the claims of a session that is ours and counts."""
    sessions = sessions_of(request)
    # The rate limit has proved the token already, where there is one at this address.
    claims = proved_session(request) or sessions.prove(token)
    await sessions.check(claims)
    return claims


def _demand_second_factor(claims: SessionClaims) -> None:
    if claims.kind == "admin" and not claims.second_factor:
        raise NotPermitted("enrol a second factor first: POST /api/v1/admin/second-factor")


async def _person(request: Request, token: str) -> Caller:
    claims = await _session(request, token)
    _demand_second_factor(claims)
    return Caller(
        actor=claims.person_id,
        kind=claims.kind,
        merchant_id=claims.merchant_id,
        merchant_name=claims.merchant_name,
        mode=_mode(request),
        scopes=ROLE_SCOPES.get(claims.role, frozenset()),
        role=claims.role,
    )


def _mode(request: Request) -> Mode:
    """Return the mode a person asks for; a key has its own."""
    asked = request.headers.get("giovang-mode", "live")
    if asked == "live":
        return "live"
    if asked == "test":
        return "test"
    raise InvalidRequest(
        "the header Giovang-Mode is not valid",
        errors=[FieldError(detail="test or live", pointer="/header/giovang-mode")],
    )


def _reaching(caller: Caller, scope: Scope) -> Caller:
    if scope not in caller.scopes:
        raise NotPermitted(f"this takes the scope {scope}")
    return caller


def _described(dependency: D, scope: Scope, *schemes: str) -> D:
    """Mark a dependency with what the OpenAPI document says about it."""
    dependency.security = schemes  # type: ignore[attr-defined]
    dependency.scope = scope  # type: ignore[attr-defined]
    return dependency

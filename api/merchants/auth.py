"""Who is asking: the dependencies by which routes demand an API key with a scope, or the admin."""

from collections.abc import Awaitable, Callable
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.database import Identity
from api.errors import NotAuthenticated, NotPermitted
from api.merchants import service
from api.merchants.model import KeyHolder, ScopeName
from api.security import same_secret
from api.settings import ApiSettings
from api.web import database_of, request_id_of

_api_key = HTTPBearer(auto_error=False, scheme_name="API key", description="`gv_test_…`")
_admin_key = HTTPBearer(auto_error=False, scheme_name="Admin key")


def holder_with(scope: ScopeName) -> Callable[..., Awaitable[KeyHolder]]:
    """Return a dependency that gives the holder of the request's API key, if it has the scope."""

    async def holder(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_api_key)],
    ) -> KeyHolder:
        if credentials is None:
            raise NotAuthenticated("send the header Authorization: Bearer gv_test_…")
        found = await service.authenticate(database_of(request), credentials.credentials)
        if scope not in found.scopes:
            raise NotPermitted(f"the key lacks the scope {scope}")
        return found

    return holder


async def admin(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_admin_key)],
) -> str:
    """Return the admin's name for the audit; raises NotAuthenticated for any other."""
    settings = cast("ApiSettings", request.app.state.settings)
    expected = settings.admin_key.get_secret_value()
    if credentials is None or not same_secret(credentials.credentials, expected):
        raise NotAuthenticated("this is for the holder of the admin key")
    return "admin"


def identity_of(request: Request, holder: KeyHolder) -> Identity:
    """Return on whose behalf the units of work of this request run."""
    return Identity(holder.key_id, holder.merchant_id, request_id_of(request))

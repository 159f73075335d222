"""The OpenAPI document: what FastAPI knows, and what holds for every operation of the API.

Who may call is read off the dependencies that enforce it. Limits, problems and headers are those of
the gate, so they are added to every operation here, once, rather than by each route.
"""

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, iter_route_contexts

from api.errors import (
    BodyTooLarge,
    DatabaseUnavailable,
    FieldError,
    GiovangError,
    InvalidRequest,
    MalformedRequest,
    NotAuthenticated,
    NotPermitted,
    Problem,
    TooManyRequests,
    UnsupportedMedia,
)
from api.people.auth import ADMIN_KEY_SCHEME, KEY_SCHEME, LIVE_TOKEN_SCHEME, SESSION_SCHEME
from api.web import idempotency_key, problems

_API: Final = "/api/v1"
_METHODS: Final = ("get", "put", "post", "delete", "patch")
_SCHEMES: Final[dict[str, dict[str, str]]] = {
    KEY_SCHEME: {
        "type": "http",
        "scheme": "bearer",
        "description": "`gv_test_…` or `gv_live_…`: of one merchant, mode and set of scopes.",
    },
    SESSION_SCHEME: {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "What signing in gives a person: an hour long, to be rotated for up to "
        "twelve. A role is a set of scopes.",
    },
    ADMIN_KEY_SCHEME: {
        "type": "http",
        "scheme": "bearer",
        "description": "The key of the platform's environment, to bring in the first merchants, "
        "keys, staff and admins.",
    },
    LIVE_TOKEN_SCHEME: {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "Of one payment, for a quarter of an hour, to watch it and nothing else.",
    },
}
_MODE_PARAMETER: Final[dict[str, Any]] = {
    "name": "Giovang-Mode",
    "in": "header",
    "required": False,
    "description": "Which mode a person's session speaks of. An API key has its own.",
    "schema": {"type": "string", "enum": ["test", "live"], "default": "live"},
}
_KEY_PARAMETER: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "Your own name for this request, 1 to 255 visible ASCII characters. Sent again, "
    "the request has no second effect and gets the first answer.",
    "schema": {"type": "string", "pattern": "^[!-~]+$", "minLength": 1, "maxLength": 255},
    "example": "order-1042-attempt-1",
}
_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": {
        "description": "The id of this request, as the audit knows it.",
        "schema": {"type": "string"},
        "example": "req_01jz8w5k6h7m9n0p2q3r4s5t6v",
    },
    "RateLimit-Policy": {
        "description": "The limits in force: tokens (q) in seconds (w).",
        "schema": {"type": "string"},
        "example": '"default";q=6000;w=60',
    },
    "RateLimit": {
        "description": "Tokens left (r), and the seconds until all are back (t).",
        "schema": {"type": "string"},
        "example": '"default";r=5999;t=1',
    },
    "Idempotent-Replayed": {
        "description": "`true` where this is the answer to an earlier request of the same key.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Retry-After": {
        "description": "Seconds after which the same request may do better.",
        "schema": {"type": "integer"},
        "example": 2,
    },
    "WWW-Authenticate": {
        "description": "How to say who you are.",
        "schema": {"type": "string"},
        "example": 'Bearer realm="giovang"',
    },
}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the application, made at the first call."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = described.setdefault("components", {})
        components["securitySchemes"] = _SCHEMES
        components["headers"] = {name: dict(header) for name, header in _HEADERS.items()}
        schemas = components.setdefault("schemas", {})
        for model in (Problem, FieldError):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schema.pop("$defs", None)
            schemas[model.__name__] = schema
        calls = {
            (context.path, method.lower()): list(_calls(context.original_route.dependant))
            for context in iter_route_contexts(app.routes)
            if isinstance(context.original_route, APIRoute)
            for method in context.original_route.methods or ()
        }
        for schema in schemas.values():
            _close_names(schema)
        for path, item in described["paths"].items():
            for method in _METHODS:
                if path.startswith(_API) and method in item:
                    _complete(item[method], calls.get((path, method), []))
        app.openapi_schema = described
    return app.openapi_schema


def _close_names(schema: Any) -> None:  # noqa: ANN401 - any JSON
    """Say of every object whose names follow a pattern that it takes no other names.

    Pydantic refuses them, and leaves that out of the schema.
    """
    if isinstance(schema, dict):
        if "patternProperties" in schema:
            schema.setdefault("additionalProperties", False)
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            _close_names(part)


def _calls(dependant: Dependant) -> Iterator[Any]:
    """Return the dependencies of a route, at any depth."""
    for dependency in dependant.dependencies:
        yield dependency.call
        yield from _calls(dependency)


def _complete(operation: dict[str, Any], calls: list[Any]) -> None:
    """Add to an operation what the gate and its dependencies do to every request."""
    guards = [call for call in calls if hasattr(call, "security")]
    errors: list[type[GiovangError]] = [TooManyRequests, GiovangError, DatabaseUnavailable]
    if guards:
        schemes = {scheme: None for guard in guards for scheme in guard.security}
        operation["security"] = [{scheme: []} for scheme in schemes]
        errors += [NotAuthenticated, NotPermitted]
        if SESSION_SCHEME in schemes and any(hasattr(guard, "scope") for guard in guards):
            operation.setdefault("parameters", []).append(_MODE_PARAMETER)
            errors.append(InvalidRequest)
        scopes = [f"`{guard.scope}`" for guard in guards if hasattr(guard, "scope")]
        if scopes:
            said = operation.get("description", "")
            operation["description"] = f"{said}\n\nTakes the scope {' and '.join(scopes)}.".strip()
    else:
        # Signing in says whether the person is who they say.
        errors.append(NotAuthenticated)
    if idempotency_key in calls:
        operation.setdefault("parameters", []).append(_KEY_PARAMETER)
    if "requestBody" in operation:
        errors += [MalformedRequest, BodyTooLarge, UnsupportedMedia, InvalidRequest]
    _describe(operation, errors)


def _describe(operation: dict[str, Any], errors: list[type[GiovangError]]) -> None:
    """Merge these problems into an operation's responses and name the headers of each response."""
    responses = operation["responses"]
    if "requestBody" not in operation and not operation.get("parameters"):
        # FastAPI and `problems` describe a 422 everywhere; here nothing can be invalid.
        responses.pop("422", None)
    for status, answer in problems(*errors).items():
        if status == 422 and InvalidRequest not in errors and "422" not in responses:
            continue
        known = responses.get(str(status))
        if known is None or "application/problem+json" not in known.get("content", {}):
            responses[str(status)] = answer
            continue
        for media_type, content in answer["content"].items():
            examples = known["content"][media_type]["examples"]
            known["content"][media_type]["examples"] = {**content["examples"], **examples}
    takes_key = _KEY_PARAMETER in operation.get("parameters", ())
    for status, answer in responses.items():
        names = ["X-Request-Id", "RateLimit-Policy", "RateLimit"]
        if takes_key and int(status) < 400:
            names.append("Idempotent-Replayed")
        if status in {"409", "429", "503"}:
            names.append("Retry-After")
        if status == "401":
            names.append("WWW-Authenticate")
        answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}

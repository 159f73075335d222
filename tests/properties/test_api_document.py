"""Every operation of the OpenAPI document against requests made from it: no surprise.

For each operation requests are generated from the document and sent to a running API. Every answer
must be one that the document names, in the form that it says; what the document forbids is refused;
nothing is ever a 500. GIOVANG_TEST_API_EXAMPLES sets how many requests an operation gets.
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.fixtures.api import ApiServer
from tests.fixtures.desk import make_desk_api
from tests.fixtures.services import BrokerServer, DatabaseServer
from tests.fixtures.sessions import admin_of, staff_of

EXAMPLES = int(os.environ.get("GIOVANG_TEST_API_EXAMPLES", "12"))
PEOPLES_PATHS = ("/api/v1/staff", "/api/v1/api-keys", "/api/v1/merchant", "/api/v1/sessions")
ADMINS_PATHS = ("/api/v1/admin", "/api/v1/merchants")


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_desk_api(folder, ledger_database, redis_server, rate_limit_per_minute="1000000")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def tokens(api: ApiServer, ledger_database: DatabaseServer) -> dict[str, str]:
    """Return what to sign requests with: a key of all scopes, an owner's and an admin's session."""
    shop = api.shop()
    clients = {
        "key": shop.client,
        "owner": staff_of(api, ledger_database, shop),
        "admin": admin_of(api, ledger_database),
    }
    return {name: client.headers["Authorization"] for name, client in clients.items()}


# Rules that a JSON schema cannot say: between two fields, or about what exists. A request that
# keeps to the document may break them, and is told so.
UNSAYABLE = (
    "not with starting_after",
    "no line of this account",
    "no event of yours",
    "not a time zone of the IANA database",
    "not of a new admin",
    # To a JSON schema 245.0 is an integer. To us it is a float, and there are none.
    "Input should be a valid integer",
)


def signs(path: str) -> str:
    """Return whose token a path takes."""
    if path.startswith(ADMINS_PATHS):
        return "admin"
    return "owner" if path.startswith(PEOPLES_PATHS) else "key"


def check(operation: Any, mode: GenerationMode, tokens: dict[str, str]) -> None:
    """Send requests of one kind to one operation; raises what schemathesis found."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def requests(case: schemathesis.Case[Any]) -> None:
        headers = {"Authorization": tokens[signs(case.path)], "Giovang-Mode": "test"}
        if operation.method == "delete" or operation.path.endswith("/rotate"):
            # These would end the session or key of every later request.
            headers["Authorization"] = f"Bearer gv_test_{secrets.token_hex(32)}"
        if mode is GenerationMode.POSITIVE:
            # One key for two requests is refused, and generated ones repeat.
            headers["Idempotency-Key"] = secrets.token_hex(8)
        mended = {name.lower() for name in case.headers or {}} & {"authorization", "giovang-mode"}
        answer = case.call(headers=headers)
        excluded: list[Any] = [positive_data_acceptance] if breaks_an_unsayable_rule(answer) else []
        if mended:
            # What was made wrong about the request may be the very header that we replaced.
            excluded.append(negative_data_rejection)
        case.validate_response(answer, excluded_checks=excluded)

    try:
        requests()
    except Unsatisfiable:
        # Nothing to get wrong: no parameter and no body.
        assert mode is GenerationMode.NEGATIVE
        assert not list(operation.iter_parameters()), operation.label
        assert not operation.body, operation.label


def breaks_an_unsayable_rule(answer: Any) -> bool:
    """Say whether an answer refuses by such rules, and by nothing else."""
    if answer.status_code != 422:
        return False
    errors = answer.json().get("errors", [])
    return bool(errors) and all(
        any(rule in error["detail"] for rule in UNSAYABLE) for error in errors
    )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_operation_keeps_to_its_document(
    api: ApiServer, tokens: dict[str, str], mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_url(f"{api.base_url}/openapi.json")
    surprises = {}
    operations = 0
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        operations += 1
        try:
            check(operation, mode, tokens)
        except (FailureGroup, Failure) as found:
            surprises[operation.label] = str(found)
    assert operations >= 40
    assert not surprises, "\n\n".join(f"{name}: {what}" for name, what in surprises.items())


def test_the_document_is_served_and_names_its_errors(api: ApiServer) -> None:
    document = httpx.get(f"{api.base_url}/openapi.json").json()
    for path, by_method in document["paths"].items():
        for method, described in by_method.items():
            if not path.startswith("/api/v1"):
                continue
            answers = described["responses"]
            assert {"429", "500"} <= set(answers), f"{method} {path} names {sorted(answers)}"
            for status, answer in answers.items():
                if status >= "400":
                    assert "application/problem+json" in answer["content"], (method, path, status)

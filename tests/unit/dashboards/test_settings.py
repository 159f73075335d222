"""Settings that cannot work are refused at the start, without repeating a secret."""

import base64

import pytest
from pydantic import ValidationError

from dashboards.settings import DashboardSettings

GOOD = base64.b64encode(bytes(range(32))).decode()


def made(key: str) -> DashboardSettings:
    return DashboardSettings.model_validate(
        {
            "warehouse_url": "postgresql://giovang_dashboards:secret@db/analytics",
            "api_url": "http://127.0.0.1:8000/",
            "session_public_key": key,
        }
    )


def test_the_key_is_the_apis_public_key() -> None:
    settings = made(GOOD)
    assert settings.verification_key.public_bytes_raw() == bytes(range(32))
    assert settings.api_url == "http://127.0.0.1:8000"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize("key", ["", "%%%", base64.b64encode(bytes(31)).decode()])
def test_a_key_of_the_wrong_kind_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="session_public_key") as caught:
        made(key)
    assert "secret" not in str(caught.value)

"""`python -m ingest.check` without a database; with real ones see tests/integration."""

import pytest

from ingest import check


def test_without_a_database_it_cannot_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(check.URL_VARIABLE, raising=False)
    assert check.main([]) == check.CANNOT_TELL
    assert "give --database-url" in capsys.readouterr().err


def test_a_malformed_url_is_told_without_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--database-url", "postgresql://u:s3cret@host:notaport/db"]) == (
        check.CANNOT_TELL
    )
    told = capsys.readouterr()
    assert "cannot tell" in told.err
    assert "s3cret" not in told.err + told.out

"""The migrations' files: numbered without a gap, named, and the shipped ones readable."""

from pathlib import Path

import pytest

from streams.schema.runner import SchemaError, migrations


def test_the_shipped_migrations_are_in_order() -> None:
    found = migrations()
    assert [migration.version for migration in found] == list(range(1, len(found) + 1))
    assert found[0].name == "raw"


def test_a_gap_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_text("SELECT 1")
    (tmp_path / "0003_c.sql").write_text("SELECT 1")
    with pytest.raises(SchemaError, match="without a gap"):
        migrations(tmp_path)


def test_a_misnamed_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1-first.sql").write_text("SELECT 1")
    with pytest.raises(SchemaError, match=r"1-first\.sql"):
        migrations(tmp_path)


def test_the_digest_tells_a_changed_file(tmp_path: Path) -> None:
    path = tmp_path / "0001_a.sql"
    path.write_text("SELECT 1")
    (before,) = migrations(tmp_path)
    path.write_text("SELECT 2")
    (after,) = migrations(tmp_path)
    assert before.sha256 != after.sha256

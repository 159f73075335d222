"""Entrypoint `python -m streams.schema`: bring the warehouse's schema up to date.

Safe to run at every start; exits non-zero with one clear log line when it cannot.
"""

import sys

import psycopg

from infra.telemetry import configure_logging, get_logger
from streams.schema.runner import SchemaError, apply, migrations
from streams.settings import SchemaSettings


def main() -> int:
    """Apply what is missing; return the exit status."""
    configure_logging("warehouse-schema")
    log = get_logger(__name__)
    settings = SchemaSettings()
    try:
        applied = apply(settings.schema_url.get_secret_value(), migrations())
    except (SchemaError, psycopg.Error) as error:
        log.exception("schema not up to date", reason=f"{type(error).__name__}: {error}")
        return 1
    log.info("schema is up to date", applied=len(applied))
    return 0


if __name__ == "__main__":
    sys.exit(main())

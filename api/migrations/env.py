"""Alembic's environment: one connection, one migration at a time.

An advisory lock keeps a second run waiting until the first has committed; it fails after a minute.
"""

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from api.migrations.apply import sqlalchemy_url

# Any fixed number will do; it only has to be the same for every run.
_ONE_MIGRATION_AT_A_TIME = 4_702_111
_LOCK_TIMEOUT = "60s"


def run_migrations() -> None:
    """Apply revisions over the URL that `python -m api.migrations` was given.

    `on_applied`, where given, is called after each revision with Alembic's account of it.
    """
    attributes = context.config.attributes
    engine = create_engine(
        sqlalchemy_url(attributes["url"]),
        poolclass=NullPool,
        connect_args={"application_name": "giovang-migrations", "connect_timeout": 10},
    )
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            transaction_per_migration=True,
            on_version_apply=attributes.get("on_applied"),
        )
        connection.execute(text(f"SET lock_timeout = '{_LOCK_TIMEOUT}'"))
        connection.execute(
            text("SELECT pg_advisory_lock(:number)"), {"number": _ONE_MIGRATION_AT_A_TIME}
        )
        connection.commit()
        with context.begin_transaction():
            context.run_migrations()


run_migrations()

"""The two clusters of the product: which roles, databases and extensions each holds.

Roles get LOGIN and a password here and nothing else: each room's own migrations grant what its
role needs, and no role may pass row-level security.
"""

from collections.abc import Mapping
from pathlib import Path

from infra.stack.postgres import (
    LOGICAL_SOURCE_SETTINGS,
    TIMESCALE_SETTINGS,
    Cluster,
    PostgresTree,
    Role,
)

LEDGER_ROLES = (
    "giovang_owner",
    "giovang_api",
    "giovang_operator",
    "giovang_watcher",
    "giovang_capture",
)
ANALYTICS_ROLES = (
    "giovang_warehouse_owner",
    "giovang_streams",
    "giovang_dbt",
    "giovang_dashboards",
)
SUPERUSERS = ("ledger_superuser", "analytics_superuser")


def ledger_cluster(
    tree: PostgresTree, data: Path, port: int, passwords: Mapping[str, str]
) -> Cluster:
    """The cluster of record, whose log capture reads."""
    return Cluster(
        name="ledger-db",
        tree=tree,
        data=data,
        port=port,
        superuser_password=passwords["ledger_superuser"],
        database="giovang",
        owner="giovang_owner",
        roles=[
            Role(name, passwords[name], replication=name == "giovang_capture")
            for name in LEDGER_ROLES
        ],
        settings=LOGICAL_SOURCE_SETTINGS,
        schemas={"capture": "giovang_capture"},
    )


def analytics_cluster(
    tree: PostgresTree, data: Path, port: int, passwords: Mapping[str, str]
) -> Cluster:
    """The warehouse's cluster, with TimescaleDB."""
    return Cluster(
        name="analytics-db",
        tree=tree,
        data=data,
        port=port,
        superuser_password=passwords["analytics_superuser"],
        database="analytics",
        owner="giovang_warehouse_owner",
        roles=[Role(name, passwords[name]) for name in ANALYTICS_ROLES],
        settings=TIMESCALE_SETTINGS,
        extensions=("timescaledb",),
    )

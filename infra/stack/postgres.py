"""A private PostgreSQL cluster: its files, settings, roles and databases.

A cluster listens on loopback TCP only, asks every role for its password (scram-sha-256), keeps
fsync on, and never touches a server of the machine. Making it again changes nothing that is
already right. ClusterError says which step failed, with PostgreSQL's own words.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from infra.stack.accounts import Account

SUPERUSER = "postgres"
INITDB_TIMEOUT_S = 120

# Chosen for a small machine that runs two clusters and seven more services; durability is never
# traded away.
COMMON_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "fsync": "on",
    "full_page_writes": "on",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "effective_cache_size": "512MB",
    "maintenance_work_mem": "64MB",
    "work_mem": "8MB",
    "min_wal_size": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "10min",
    "max_parallel_workers_per_gather": "1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_min_duration_statement": "-1",
    "log_statement": "none",
    # Statements, their values and error details hold row data, which logs never carry.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_parameter_max_length_on_error": "0",
}
_LOGIN_RULES = """\
host all all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""
LOGICAL_SOURCE_SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    # A capture that stays away must not fill the disk: beyond this its slot is given up, and
    # capture then refuses to start rather than skip changes.
    "max_slot_wal_keep_size": "8GB",
}
TIMESCALE_SETTINGS: Mapping[str, str] = {
    "shared_preload_libraries": "timescaledb",
    "timescaledb.telemetry_level": "off",
    "max_worker_processes": "16",
    "shared_buffers": "256MB",
}


class ClusterError(Exception):
    """A cluster could not be made or prepared."""


@dataclass(frozen=True, slots=True)
class PostgresTree:
    """A relocated copy of the distribution's PostgreSQL, with TimescaleDB installed in it."""

    root: Path

    @property
    def major(self) -> int:
        """The major version found in the tree; ClusterError where there is not exactly one."""
        found = sorted(self.root.glob("lib/postgresql/*/bin/postgres"))
        if len(found) != 1:
            message = f"{self.root} does not hold one PostgreSQL (run ./giovang doctor)"
            raise ClusterError(message)
        return int(found[0].parent.parent.name)

    def program(self, name: str) -> str:
        """Path of one of PostgreSQL's programs."""
        return str(self.root / f"lib/postgresql/{self.major}/bin/{name}")

    @property
    def has_timescaledb(self) -> bool:
        """Whether the extension is installed in the tree."""
        return (
            self.root / f"share/postgresql/{self.major}/extension/timescaledb.control"
        ).is_file()


@dataclass(frozen=True, slots=True)
class Role:
    """A login role of a cluster; never a superuser and never past row-level security."""

    name: str
    password: str = field(repr=False)
    replication: bool = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything that is decided about one cluster before it runs."""

    name: str
    tree: PostgresTree
    data: Path
    port: int
    superuser_password: str = field(repr=False)
    database: str
    owner: str
    roles: Sequence[Role]
    settings: Mapping[str, str]
    extensions: Sequence[str] = ()
    # Schemas of the database that belong to a role other than the database's owner.
    schemas: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"

    def superuser_url(self, database: str = "postgres") -> str:
        """URL of the superuser; only the stack itself and tests use it."""
        return self._url(SUPERUSER, self.superuser_password, database)

    def url(self, role: str, database: str | None = None) -> str:
        """URL of one of the cluster's roles; `database` defaults to the cluster's own."""
        password = next(known.password for known in self.roles if known.name == role)
        return self._url(role, password, database or self.database)

    def command(self) -> tuple[str, ...]:
        """The server's command line; all settings are in the cluster's own file."""
        return (self.tree.program("postgres"), "-D", str(self.data))

    def initialise(self, account: Account | None) -> None:
        """Make the data folder if there is none, and write the settings; the server is down.

        The caller makes sure that no server of ours runs on the data.
        """
        if not (self.data / "PG_VERSION").is_file():
            self._initdb(account)
        made_by = int((self.data / "PG_VERSION").read_text().strip())
        if made_by != self.tree.major:
            message = (
                f"{self.name}: the data in {self.data} is PostgreSQL {made_by}'s, the server is "
                f"{self.tree.major}; ./giovang reset starts afresh"
            )
            raise ClusterError(message)
        self._remove_stale_lock()
        settings = {**COMMON_SETTINGS, **self.settings, "port": str(self.port)}
        lines = [f"{name} = '{value}'" for name, value in settings.items()]
        _write(self.data / "postgresql.conf", "\n".join(lines) + "\n", account)
        _write(self.data / "pg_hba.conf", _LOGIN_RULES, account)

    def provision(self) -> None:
        """Create roles, database and extensions on the running server; repeatable."""
        with psycopg.connect(self.superuser_url(), autocommit=True, connect_timeout=10) as server:
            for role in self.roles:
                _ensure_role(server, role)
            exists = server.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [self.database]
            ).fetchone()
            if exists is None:
                server.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(
                        sql.Identifier(self.database), sql.Identifier(self.owner)
                    )
                )
                server.execute(
                    sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(
                        sql.Identifier(self.database)
                    )
                )
            for role in self.roles:
                server.execute(
                    sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(
                        sql.Identifier(self.database), sql.Identifier(role.name)
                    )
                )
        with psycopg.connect(self.superuser_url(self.database), autocommit=True) as database:
            for extension in self.extensions:
                database.execute(
                    sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(extension))
                )
            for schema, owner in self.schemas.items():
                database.execute(
                    sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(
                        sql.Identifier(schema), sql.Identifier(owner)
                    )
                )

    def _url(self, user: str, password: str, database: str) -> str:
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"postgresql://{login}@{self.host}:{self.port}/{quote(database, safe='')}"

    def _remove_stale_lock(self) -> None:
        # After a crash the file names a process that is gone, or by now another program's, in
        # which case PostgreSQL would refuse to start for as long as that lives.
        lock = self.data / "postmaster.pid"
        try:
            pid = int(lock.read_text().split("\n", 1)[0])
        except FileNotFoundError:
            return
        except ValueError:
            pid = 0
        try:
            command = psutil.Process(pid).cmdline() if pid else []
        except psutil.Error:
            command = []
        if str(self.data) not in command:
            lock.unlink()

    def _initdb(self, account: Account | None) -> None:
        # Made beside its place and moved there whole: an interrupted initdb leaves nothing that
        # looks like a cluster.
        unfinished = self.data.with_name(self.data.name + ".new")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700, parents=True)
        if account is not None:
            account.give(unfinished)
        with tempfile.NamedTemporaryFile("w", dir=unfinished.parent) as secret:
            secret.write(self.superuser_password)
            secret.flush()
            if account is not None:
                account.give(Path(secret.name))
            command = [self.tree.program("initdb"), "-D", str(unfinished), "-U", SUPERUSER]
            command += ["--pwfile", secret.name, "--auth", "scram-sha-256", "--encoding", "UTF8"]
            command += ["--locale", "C.UTF-8", "--data-checksums"]
            _run_as(account, command)
        if self.data.exists():
            self.data.rmdir()  # an empty folder at most; anything else is not ours to remove
        unfinished.rename(self.data)


def _ensure_role(server: psycopg.Connection[tuple[object, ...]], role: Role) -> None:
    known = server.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role.name]).fetchone()
    verb = sql.SQL("CREATE" if known is None else "ALTER")
    replication = sql.SQL("REPLICATION" if role.replication else "NOREPLICATION")
    server.execute(
        sql.SQL(
            "{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS {} PASSWORD {}"
        ).format(verb, sql.Identifier(role.name), replication, sql.Literal(role.password))
    )


def _run_as(account: Account | None, command: Sequence[str]) -> None:
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
    identity = (
        {}
        if account is None
        else {"user": account.uid, "group": account.gid, "extra_groups": [account.gid]}
    )
    try:
        subprocess.run(
            list(command),
            check=True,
            capture_output=True,
            text=True,
            env=environment,
            cwd="/",
            timeout=INITDB_TIMEOUT_S,
            **identity,  # type: ignore[call-overload]
        )
    except subprocess.CalledProcessError as error:
        message = f"{command[0]} failed: {(error.stderr or error.stdout).strip()}"
        raise ClusterError(message) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{command[0]} failed: {error}"
        raise ClusterError(message) from error


def _write(path: Path, text: str, account: Account | None) -> None:
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(text)
    unfinished.chmod(0o600)
    if account is not None:
        account.give(unfinished)
    unfinished.replace(path)

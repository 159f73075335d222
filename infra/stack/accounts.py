"""The unprivileged user that runs the services when the stack is started by root.

PostgreSQL refuses to run as root, and nothing else needs to. A normal user runs everything as
himself. Creating the user needs root; AccountError says what failed.
"""

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path

SERVICE_USER = "giovang"


class AccountError(Exception):
    """The service user cannot be created."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, by number: what a child process becomes."""

    name: str
    uid: int
    gid: int

    def give(self, path: Path) -> None:
        """Make this account the owner of one existing file or folder."""
        os.chown(path, self.uid, self.gid)


def service_account() -> Account | None:
    """Return the account services run as: None for a normal user, who runs them as himself.

    As root, the system user `giovang` is created on first use. Raises AccountError.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        _create_user()
        entry = pwd.getpwnam(SERVICE_USER)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def can_enter(account: Account | None, folder: Path) -> bool:
    """Say whether `account` may pass through every folder above and including `folder`.

    A folder that does not exist yet is no obstacle: it will be made for the account.
    """
    if account is None:
        return not folder.exists() or os.access(folder, os.X_OK)
    return all(_allows(account, part, 0o111) for part in (folder, *folder.parents))


def can_read(account: Account | None, file: Path) -> bool:
    """Say whether `account` may read an existing file."""
    if account is None:
        return os.access(file, os.R_OK)
    return can_enter(account, file.parent) and _allows(account, file, 0o444)


def _allows(account: Account, path: Path, wanted: int) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return True
    if status.st_uid == account.uid:
        who = 0o700
    elif status.st_gid == account.gid:
        who = 0o070
    else:
        who = 0o007
    return bool(status.st_mode & wanted & who)


def _create_user() -> None:
    command = ["useradd", "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", SERVICE_USER]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        message = f"cannot create the system user {SERVICE_USER!r}: {detail.strip()}"
        raise AccountError(message) from error

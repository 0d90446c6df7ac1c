"""Locks of a pool: one arbiter per state directory, one worker per slot; and the token of the state directory.

The locks are the kernel's, so a process that dies never leaves one behind.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from pathlib import Path

from supervisor.errors import AlreadyRunningError, ConfigError
from supervisor.keys import pool_id
from supervisor.settings.model import Settings
from supervisor.settings.paths import PoolPaths

TOKEN_BYTES = 16
#: As files that Python opens, it is closed by an exec. A link is an error: writing would change another file.
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def lock_state_dir(paths: PoolPaths) -> int:
    """Take the lock of the state directory and return its descriptor, which holds it until closed.

    Raises AlreadyRunningError, and ConfigError if the state directory can't be used.
    """
    try:
        fd = os.open(paths.lock, _NEW_FILE, 0o600)
    except OSError as error:
        raise unusable(paths.state_dir, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _check_record_locks(paths)
    except BlockingIOError:
        owner = os.pread(fd, 20, 0).decode(errors="replace").strip()
        os.close(fd)
        raise AlreadyRunningError(
            f"a supervisor{f' (pid {owner})' if owner else ''} already runs with the state directory {paths.state_dir};"
            " `supervisor stop` ends it, another state_dir (and [pool] name) makes a second pool"
        ) from None
    except ConfigError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        raise ConfigError(
            f"state_dir: {paths.state_dir}: its file system has no locks ({error.strerror}), like NFS without a lock"
            " daemon; without locks, two pools could run each other's messages: set state_dir (or SUPERVISOR_STATE_DIR)"
            " to a folder on a local disk"
        ) from None
    with contextlib.suppress(OSError):  # the pid is for people; the disk may be full
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def unusable(path: Path, error: OSError) -> ConfigError:
    """Return the error for a file of the state directory that can't be used, with what to do about it."""
    remedies = {
        errno.EACCES: "it must belong to the user of the pool",
        errno.EPERM: "it must belong to the user of the pool",
        errno.EROFS: "choose a folder that can be written",
        errno.ELOOP: "remove the link",
        errno.ENOSPC: "make room on this disk",
        errno.EDQUOT: "make room on this disk",
    }
    remedy = remedies.get(error.errno or 0, "choose another folder")
    return ConfigError(f"state_dir: {path}: {error.strerror}; {remedy}, or set state_dir (or SUPERVISOR_STATE_DIR)")


def _check_record_locks(paths: PoolPaths) -> None:
    """Raise OSError if the workers could not lock their slots, ConfigError if they could not create the files."""
    try:
        paths.slots.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(paths.slots / "probe", _NEW_FILE, 0o600)
    except OSError as error:
        raise unusable(paths.state_dir / paths.slots.name, error) from None
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def lock_slot(paths: PoolPaths, slot: int) -> None:
    """Wait for the slot's lock and keep it until this process ends. Raises OSError if it can't be created.

    Two workers in one slot would share a consumer and run each other's messages. After the arbiter was
    killed, no parent has seen the old workers exit, so the new ones wait here. It is a record lock: it belongs
    to the process, so no grandchild that inherits descriptors keeps it (fcntl(2); with flock(2) it would).
    """
    paths.slots.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(paths.slots / f"{slot}.lock", _NEW_FILE, 0o600)
    fcntl.lockf(fd, fcntl.LOCK_EX)


def lease_token(paths: PoolPaths, wanted: str = "") -> str:
    """Return the token that proves to Redis that this is the same pool, creating it if necessary, as `wanted`.

    Raises ConfigError if it can't be stored.
    """
    try:
        if paths.token.exists() and (token := paths.token.read_text().strip()):
            return token
        token = wanted or secrets.token_hex(TOKEN_BYTES)
        draft = paths.token.with_suffix(".new")
        fd = os.open(draft, _NEW_FILE | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(token)
        draft.replace(paths.token)
        return token
    except OSError as error:
        raise unusable(paths.state_dir / paths.token.name, error) from None


def name_taken(settings: Settings) -> AlreadyRunningError:
    """Return the error for a pool whose name another pool has taken over."""
    return AlreadyRunningError(
        f"another pool has taken the name {pool_id(settings.pool.host, settings.pool.name)!r} on this Redis while this"
        " one could not renew its lease; consumers are named after the pool, so give one of the two its own name:"
        " [pool] name = ... or SUPERVISOR_POOL__NAME"
    )

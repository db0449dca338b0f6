"""Key pairs: how they are made, what a secret key's file looks like and where it lies. No socket, no thread.

A node proves who it is with a CURVE key pair. The public key stands on its line of hosts.txt, 64 hex digits, for everybody to see; the
secret key lies in a file of its own on the node's machine and never leaves it. The file holds the secret key only, behind a word that no
public key has, so neither can be mistaken for the other; the public key is computed from it. A secret key is never logged or printed.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from zpala.node.errors import SecurityRefused, UsageError

SUFFIX: Final = ".key"
KEY_BYTES: Final = 32
_FILE_MAX_BYTES: Final = 4096
_TEXT: Final = """\
# The secret key of a zpala node. Who has it can pass for the node: keep it on this machine and keep its mode at 600.
# The public key is what belongs into hosts.txt: zpala keys show
zpala-secret-key {secret}
"""
_SECRET: Final = re.compile(r"zpala-secret-key ([0-9a-f]{64})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A key pair and the file of its secret key. ``public``: 64 lower-case hex digits, as in hosts.txt; ``secret``: 32 bytes."""

    public: str
    secret: bytes = field(repr=False)
    path: Path

    @property
    def public_bytes(self) -> bytes:
        return bytes.fromhex(self.public)


@dataclass(frozen=True, slots=True)
class Keyring:
    """What a node needs to prove who it is and to know the others: its own pair, and everybody's public key by line of hosts.txt."""

    own: SecretKey
    public: Mapping[int, str]

    def public_bytes(self, line: int) -> bytes:
        """The public key of ``line``, 32 bytes."""
        return bytes.fromhex(self.public[line])


def default_folder() -> Path:
    """Where secret keys lie unless said otherwise: ``$XDG_CONFIG_HOME/zpala``, without that variable ``~/.config/zpala``."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(configured if os.path.isabs(configured) else os.path.expanduser("~/.config")) / "zpala"


def new_key(folder: Path | None = None, name: str | None = None) -> SecretKey:
    """Makes a key pair and writes the secret key into ``folder/name.key``, which must not exist; its mode is 0600 from the start.

    Args:
        folder: made when it is missing; None: ``default_folder()``.
        name: of the file, without its suffix; None: this machine's name.

    Raises: UsageError when the file exists already or cannot be written.
    """
    _check_curve()
    folder = default_folder() if folder is None else Path(os.path.expanduser(folder))
    name = socket.gethostname() if name is None else name
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a key. Give --name 1 to 64 letters, digits, '.', '_', '-', the first a letter or digit.")
    path = folder / f"{name}{SUFFIX}"
    public, secret = (z85.decode(text) for text in zmq.curve_keypair())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot write the secret key here ({error.strerror}). Give another --dir.") from None
    try:
        _write_once(path, _TEXT.format(secret=secret.hex()).encode())
    except FileExistsError:
        raise UsageError(
            f"{path} exists already, and a key is never overwritten. Give another --name, or see its public key: zpala keys show {path}"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot write the secret key ({error.strerror}). Give another --dir.") from None
    return SecretKey(public.hex(), secret, path)


def secret_keys(place: Path | None) -> tuple[SecretKey, ...]:
    """The secret key in the file ``place``, or every one in the folder ``place``; None: in ``default_folder()``, where there may be none.

    Raises: SecurityRefused for a file that cannot be read, that others may read, or that holds no secret key.
    """
    _check_curve()
    path = default_folder() if place is None else Path(os.path.expanduser(place))
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        if place is None:
            return ()
    except NotADirectoryError:
        pass
    except OSError as error:
        raise SecurityRefused(f"{path}: cannot look for secret keys here ({error.strerror}). Name a file or a folder with --key.") from None
    else:
        return tuple(read_key(path / name) for name in names if name.endswith(SUFFIX))
    return (read_key(path),)


def read_key(path: Path) -> SecretKey:
    """The key pair of one file. What is judged is the file that was opened, so nobody can put another in its place between the two.

    Raises: SecurityRefused; the text names the file and the fix, and never what the file holds.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # NONBLOCK: a pipe must not be waited for
        try:
            status = os.fstat(descriptor)
            _check_owner(path, status)
            content = os.read(descriptor, _FILE_MAX_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SecurityRefused(
            f"{path}: cannot read the secret key ({error.strerror}). Make one with 'zpala keys new', or name its file with --key."
        ) from None
    lines = [line for line in content.decode(errors="replace").splitlines() if line.strip() and not line.startswith("#")]
    found = _SECRET.fullmatch(lines[0].strip()) if len(lines) == 1 else None
    if found is None:
        raise SecurityRefused(f"{path}: this is no secret key of zpala. Name a file that 'zpala keys new' has written.")
    secret = bytes.fromhex(found[1])
    return SecretKey(z85.decode(zmq.curve_public(z85.encode(secret))).hex(), secret, path)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SecurityRefused(f"{path}: this is no file. Name a file that 'zpala keys new' has written.")
    if status.st_uid != os.geteuid():
        raise SecurityRefused(
            f"{path}: this secret key belongs to another user (user id {status.st_uid}, this process runs as {os.geteuid()}), who can read "
            "it. Make one of your own with 'zpala keys new', or give it to this user with chown."
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise SecurityRefused(
            f"{path}: this secret key is open to others (mode {mode:04o}). If nobody can have read it: chmod 600 {path}. "
            "Otherwise make a new one with 'zpala keys new'."
        )


def _check_curve() -> None:
    if not zmq.has("curve"):
        raise SecurityRefused("this pyzmq was built without CURVE, so there are no keys. Install the wheel: pip install --force pyzmq")


def _write_once(path: Path, content: bytes) -> None:
    """A new file of mode 0600 with all of ``content``, on disk; raises FileExistsError, and leaves no half-written file."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask takes away
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise

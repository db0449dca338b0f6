"""``zpala keys``: makes a node's key pair, and shows public keys as hosts.txt wants them. A secret key is written to its file only."""

from __future__ import annotations

import json
from pathlib import Path

from zpala.node.errors import UsageError
from zpala.node.keys import SecretKey, default_folder, new_key, secret_keys


def make(folder: Path | None, name: str | None) -> tuple[str, str]:
    """Makes a key pair: the public key, 64 hex digits, and a paragraph on where the secret key lies and what to do now.

    Raises: UsageError when the file exists already or cannot be written.
    """
    key = new_key(folder, name)
    needs_option = "" if key.path.parent == default_folder() else f" and start it with --key {key.path}"
    return key.public, (
        f"The secret key is in {key.path} (mode 600) and stays on this machine. The line on stdout is the public key: write it at the end "
        f"of this node's line in every copy of hosts.txt{needs_option}."
    )


def show(place: Path | None, *, as_json: bool) -> str:
    """One line per secret key in ``place``, a file or a folder (None: the default folder): its public key and its file.

    Raises: SecurityRefused for a file that is none or that others may read; UsageError when there is none.
    """
    keys = secret_keys(place)
    if not keys:
        raise UsageError(f"{place or default_folder()}: no secret key here (*.key). Make one with 'zpala keys new'.")
    if as_json:
        return json.dumps([{"public": key.public, "path": str(key.path)} for key in keys])
    return "\n".join(_line(key) for key in keys)


def _line(key: SecretKey) -> str:
    return f"{key.public}  {key.path}"

"""The rows of a metrics.jsonl that is still being written, each once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class NewRows:
    """Of the node whose files are in ``node_directory``, which need not exist yet."""

    def __init__(self, node_directory: Path) -> None:
        self._path = node_directory / "metrics.jsonl"
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """What has been written since the last call, but for a line that is not whole yet."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            yield json.loads(line)

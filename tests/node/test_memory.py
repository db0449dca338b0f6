"""How much memory there is, whoever limits it, and what a node says of its own."""

from __future__ import annotations

import json
import logging
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zpala.node.memory import LOOK_S, Memory, available_bytes, keep_freed_memory

GB = 10**9


def system(root: Path, files: dict[str, str]) -> Path:
    """A file system with 8,000,000 kB of memory and these files."""
    for name, text in {"proc/meminfo": "MemTotal:        8000000 kB\nMemFree: 1 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8_192_000_000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}, 8_192_000_000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "3000\n"}, 3000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "4000\n"}, 4000),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "9000000000000\n"}, 8_192_000_000),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n",
            },
            5000,
        ),
    ],
)
def test_the_least_of_all_limits_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_bytes(system(tmp_path, files)) == expected


def test_where_nobody_says_there_is_no_limit(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    memory = Memory(None, available=None)
    assert memory.limit_bytes is None
    assert not memory.exceeded(0.0)
    memory.close()


def test_a_process_that_grows_is_told_of_once_and_then_is_too_big(caplog: pytest.LogCaptureFixture) -> None:
    """The readings are this process's own. It grows by 400 MB of 2,000 MB at most."""
    probe = Memory(10**9, available=None)
    assert probe._file is not None
    used = probe._used_bytes(probe._file)
    probe.close()
    memory = Memory(int((used + 400e6) / 1e6), available=GB)
    spare = memory.limit_bytes - used if memory.limit_bytes is not None else 0.0
    caplog.set_level(logging.WARNING, "zpala")
    now, grown = 0.0, []
    while not memory.exceeded(now):
        new_pages = mmap.mmap(-1, 20 * 10**6, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # the heap may have some from earlier tests
        grown.append(np.frombuffer(new_pages, dtype=np.uint8))
        grown[-1].fill(1)
        now += LOOK_S
        assert len(grown) * 20e6 < spare + 100e6, "it does not see how the process grows"
    assert len(grown) * 20e6 > spare - 100e6, "it has stopped for nothing"
    assert len([text for text in caplog.messages if "above that it ends, with a checkpoint" in text]) == (used < 0.8 * (used + 400e6))
    assert "node.max_memory_mb" in memory.too_much
    grown.clear()
    assert memory.exceeded(now), "once is enough"
    memory.close()


def test_the_default_is_a_share_of_what_there_is() -> None:
    memory = Memory(None, available=10 * GB)
    assert memory.limit_bytes == 9 * GB
    memory.close()


AGAIN = """
import json, os, resource, sys
import torch
from zpala.node.memory import keep_freed_memory

told = keep_freed_memory({}) if sys.argv[1] == "keep" else None
blocks = [10_000_000, 3_000_000]  # floats: 40 MB, as 350 images of Atari need, which glibc never keeps by itself, and 12 MB


def update():
    made = [torch.ones(size) for size in blocks]
    return sum(float(block[-1]) for block in made)


for _ in range(12):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    update()
print(json.dumps([told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def test_memory_that_was_freed_is_not_taken_from_the_system_again() -> None:
    # Page faults of the same twenty updates. The large block has 10,000 pages of 4 kB; where pages are larger there are fewer, in both.
    said = {}
    for mode in ("keep", "as it is"):
        ran = subprocess.run([sys.executable, "-c", AGAIN, mode], capture_output=True, text=True, check=True, timeout=50)
        said[mode] = json.loads(ran.stdout)
    assert said["keep"][0] is True
    assert said["keep"][1] < 50
    assert said["as it is"][1] > 20 * said["keep"][1]


def test_an_allocator_that_a_person_has_tuned_is_left_alone() -> None:
    assert not keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"})
    assert not keep_freed_memory({"MALLOC_TRIM_THRESHOLD_": "1"})

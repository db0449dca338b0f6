from __future__ import annotations

import pytest

from zpala.rl.schedules import linear


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 8.0), (0.25, 6.0), (1.0, 0.0), (1.5, 0.0), (-0.5, 8.0)])
def test_linear(progress: float, expected: float) -> None:
    assert linear(8.0, progress) == expected

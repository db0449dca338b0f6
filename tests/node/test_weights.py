from __future__ import annotations

import numpy as np
import torch

from zpala.node.weights import Weights


def test_add_changes_the_live_vector_in_place() -> None:
    live = torch.arange(4, dtype=torch.float32)
    weights = Weights(live)
    weights.add(np.array([0.5, -1.0, 0.0, 2.0], dtype=np.float32))
    assert live.tolist() == [0.5, 0.0, 2.0, 5.0]


def test_a_state_that_was_captured_can_be_installed_elsewhere() -> None:
    donor = Weights(torch.tensor([1.0, 2.0]), {"square_average": torch.tensor([3.0, 4.0])})
    newcomer = Weights(torch.zeros(2), {"square_average": torch.zeros(2)})
    parts = {name: np.full(2, np.nan, dtype=np.float32) for name in donor.part_names}
    donor.capture(parts)
    donor.parameters.add_(10)  # a capture is a copy
    newcomer.install(parts)
    assert newcomer.parameters.tolist() == [1.0, 2.0]
    assert newcomer.optimizer_state["square_average"].tolist() == [3.0, 4.0]


def test_parts_that_did_not_come_stay_as_they_are() -> None:
    weights = Weights(torch.zeros(2), {"square_average": torch.tensor([3.0, 4.0])})
    weights.install({"parameters": np.array([1.0, 1.0], dtype=np.float32)})
    assert weights.parameters.tolist() == [1.0, 1.0]
    assert weights.optimizer_state["square_average"].tolist() == [3.0, 4.0]


def test_part_names_begin_with_the_parameters_and_are_in_one_order() -> None:
    vector = torch.zeros(1)
    assert Weights(vector, {"second_moment": vector, "first_moment": vector}).part_names == ("parameters", "first_moment", "second_moment")

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from zpala.rl.exploration import EpsilonGreedy, annealed, deal, sampled

PAPER = ((0.1, 0.01, 0.5), (0.4, 0.3, 0.3))
CPU = torch.device("cpu")


def test_epsilons_are_dealt_in_their_shares() -> None:
    """On every node to within one environment of each; over many nodes to within a thousandth."""
    for num_envs in (1, 2, 3, 5, 10, 16, 33):
        totals = dict.fromkeys(PAPER[0], 0)
        for node in range(600):
            dealt = deal(*PAPER, num_envs, seed=node)
            assert len(dealt) == num_envs
            for final, share in zip(*PAPER, strict=True):
                assert math.floor(share * num_envs - 1e-9) <= dealt.count(final) <= math.ceil(share * num_envs + 1e-9)
                totals[final] += dealt.count(final)
        for final, share in zip(*PAPER, strict=True):
            assert totals[final] / (600 * num_envs) == pytest.approx(share, abs=0.004)
    assert deal(*PAPER, 10, seed=7) == deal(*PAPER, 10, seed=7)
    assert len({tuple(deal(*PAPER, 7, seed=2**62 + node)) for node in range(50)}) > 2
    assert deal((0.2,), (1.0,), 3, seed=1) == [0.2, 0.2, 0.2]


def test_epsilon_falls_in_a_straight_line() -> None:
    assert [annealed(0.2, 0.5, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert annealed(0.2, 0.0, 0.0) == 0.2
    assert annealed(0.2, 0.5, -1.0) == 1.0


def test_every_environment_explores_as_often_as_its_epsilon_says() -> None:
    """With epsilon e and 5 actions the best action comes with 1 - 0.8 e, every other one with 0.2 e."""
    greedy = EpsilonGreedy((0.1, 0.9), (0.5, 0.5), 0.5, 3, CPU)
    steps, envs = 20_000, 4
    for progress in (0.25, 1.0):
        greedy.begin(steps, envs, progress)
        epsilons = [annealed(final, 0.5, progress) for final in deal((0.1, 0.9), (0.5, 0.5), envs, 3)]
        assert sorted(set(epsilons)) == pytest.approx([0.55, 0.95] if progress == 0.25 else [0.1, 0.9])
        assert greedy.mean_epsilon == pytest.approx(sum(epsilons) / envs)
        values = torch.zeros(envs, 5)
        values[:, 2] = 1.0
        actions = torch.stack([greedy.actions(values, t, 0, envs) for t in range(steps)]).numpy()
        for n, epsilon in enumerate(epsilons):
            found = np.bincount(actions[:, n], minlength=5) / steps
            expected = np.full(5, 0.2 * epsilon)
            expected[2] += 1.0 - epsilon
            np.testing.assert_allclose(found, expected, atol=5 * 0.5 / math.sqrt(steps))


def test_actions_do_not_depend_on_how_environments_are_grouped() -> None:
    values = torch.randn(9, 6, 4, generator=torch.Generator().manual_seed(0))
    taken = []
    for cuts in ([0, 6], [0, 2, 6], [0, 1, 2, 3, 4, 5, 6]):
        greedy = EpsilonGreedy(*PAPER, 0.5, 11, CPU)
        greedy.begin(9, 6, 0.0)
        greedy.begin(9, 6, 0.2)
        rows = [[greedy.actions(values[t, a:b], t, a, b) for a, b in itertools.pairwise(cuts)] for t in range(9)]
        taken.append(torch.stack([torch.cat(row) for row in rows]))
    assert torch.equal(taken[0], taken[1])
    assert torch.equal(taken[0], taken[2])
    assert (taken[0] != values.argmax(-1)).any()
    other = EpsilonGreedy(*PAPER, 0.5, 12, CPU)
    other.begin(9, 6, 0.2)
    assert not torch.equal(taken[0], torch.stack([other.actions(values[t], t, 0, 6) for t in range(9)]))


def test_a_stream_goes_on_where_its_state_was_taken() -> None:
    first, second = EpsilonGreedy(*PAPER, 0.5, 1, CPU), EpsilonGreedy(*PAPER, 0.5, 1, CPU)
    first.begin(3, 4, 0.0)
    second.load_state(first.state())
    values = torch.zeros(4, 1000)
    rows = []
    for greedy in (first, second):
        greedy.begin(3, 4, 0.0)
        rows.append(torch.stack([greedy.actions(values, t, 0, 4) for t in range(3)]))
    assert torch.equal(rows[0], rows[1])


def test_a_policy_is_sampled_with_one_epsilon() -> None:
    values = torch.zeros(40_000, 4)
    values[:, 1] = 1.0
    found = np.bincount(sampled(values, 0.4, torch.Generator().manual_seed(0)).numpy(), minlength=4) / 40_000
    np.testing.assert_allclose(found, [0.1, 0.7, 0.1, 0.1], atol=0.012)


@pytest.mark.parametrize(
    ("finals", "shares"), [((), ()), ((1.1,), (1.0,)), ((-0.1,), (1.0,)), ((0.1, 0.2), (1.0,)), ((0.1, 0.2), (0.5, 0.6))]
)
def test_epsilons_and_shares_that_do_not_fit_are_refused(finals: tuple[float, ...], shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="final epsilon"):
        EpsilonGreedy(finals, shares, 0.5, 1, CPU)

from __future__ import annotations

import itertools

from zpala.rl.seeding import actor_seed, environment_seeds, node_seed, torch_seed


def test_the_same_path_gives_the_same_seed() -> None:
    assert environment_seeds(7, 2, 1, 5) == environment_seeds(7, 2, 1, 5)
    assert torch_seed(7, 2) == torch_seed(7, 2)
    assert list(node_seed(7, 2).generate_state(4)) == list(node_seed(7, 2).generate_state(4))


def test_no_two_paths_share_a_seed() -> None:
    paths = itertools.product(range(3), range(4), range(4))
    seeds = [seed for root, node, actor in paths for seed in environment_seeds(root, node, actor, 8)]
    assert len(set(seeds)) == len(seeds)


def test_purposes_have_streams_of_their_own() -> None:
    words = [tuple(sequence.generate_state(2)) for sequence in (node_seed(1, 0), actor_seed(1, 0, 0), node_seed(1, 1), actor_seed(1, 1, 0))]
    assert len(set(words)) == 4
    assert torch_seed(1, 0) != torch_seed(1, 1)


def test_seeds_fit_what_takes_them() -> None:
    assert all(0 <= seed < 2**31 for seed in environment_seeds(123, 0, 0, 1000))
    assert all(0 <= torch_seed(root, 0) < 2**63 for root in range(100))


def test_more_environments_keep_the_seeds_of_the_first() -> None:
    assert environment_seeds(1, 0, 0, 8)[:4] == environment_seeds(1, 0, 0, 4)

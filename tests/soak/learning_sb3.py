"""Trains stable-baselines3 on one of the tasks of ``learning.py`` and lets it play: a process of its own, in a Python that has it.

    python tests/soak/learning_sb3.py '{"environment": "CartPole-v1", "algorithm": "ppo", "budget": 500000, "seed": 1, "games": 30}'

Says one JSON object. It needs stable-baselines3 and gymnasium and nothing of zpala. Hyper-parameters are those of rl-baselines3-zoo
(hyperparams/a2c.yml, ppo.yml, dqn.yml at commits c6c209e, 208b6fd, ce95481), and where it says nothing stable-baselines3's defaults; only
the number of env_steps is what was asked for, and schedules and exploration follow it. ``normalize`` is the zoo's: running statistics of
observations and rewards; evaluation takes those of training, and raw rewards.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

ALGORITHMS = {"a2c": A2C, "ppo": PPO, "dqn": DQN}
EVALUATION_ENVIRONMENTS = 10
EVALUATION_SEED = 1_000_000_007  # added to the seed: other games than those of training


def falling(start: float) -> Any:
    """The zoo's lin_...: from ``start`` to 0 over the budget."""
    return lambda remaining: remaining * start


def settings(environment: str, algorithm: str) -> dict[str, Any]:
    """The zoo's: ``n_envs``, ``normalize``, and the algorithm's own arguments."""
    q_network = {"net_arch": [256, 256]}
    table: dict[tuple[str, str], dict[str, Any]] = {
        ("CartPole-v1", "a2c"): {"n_envs": 8, "ent_coef": 0.0},
        ("CartPole-v1", "ppo"): {
            "n_envs": 8,
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": falling(1e-3),
            "clip_range": falling(0.2),
        },
        ("CartPole-v1", "dqn"): {
            "n_envs": 1,
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1000,
            "gamma": 0.99,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "policy_kwargs": q_network,
        },
        ("Acrobot-v1", "a2c"): {"n_envs": 16, "normalize": True, "ent_coef": 0.0},
        ("Acrobot-v1", "ppo"): {
            "n_envs": 16,
            "normalize": True,
            "n_steps": 256,
            "gae_lambda": 0.94,
            "gamma": 0.99,
            "n_epochs": 4,
            "ent_coef": 0.0,
        },
        ("LunarLander-v3", "ppo"): {
            "n_envs": 16,
            "n_steps": 1024,
            "batch_size": 64,
            "gae_lambda": 0.98,
            "gamma": 0.999,
            "n_epochs": 4,
            "ent_coef": 0.01,
        },
        ("Pendulum-v1", "ppo"): {
            "n_envs": 4,
            "n_steps": 1024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
    }
    return table[environment, algorithm]


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    values = dict(settings(asked["environment"], asked["algorithm"]))
    num_envs, normalize = values.pop("n_envs"), values.pop("normalize", False)
    environments = make_vec_env(asked["environment"], n_envs=num_envs, seed=asked["seed"])
    if normalize:
        environments = VecNormalize(environments, gamma=values.get("gamma", 0.99))
    model = ALGORITHMS[asked["algorithm"]]("MlpPolicy", environments, seed=asked["seed"], device="cpu", **values)
    model.learn(asked["budget"])
    began = time.monotonic()
    games = make_vec_env(asked["environment"], n_envs=EVALUATION_ENVIRONMENTS, seed=(asked["seed"] + EVALUATION_SEED) % 2**31)
    if normalize:
        assert isinstance(environments, VecNormalize)
        statistics = environments.obs_rms
        games = VecNormalize(games, training=False, norm_reward=False)
        games.obs_rms = statistics
    returns: Any
    returns, _ = evaluate_policy(model, games, n_eval_episodes=asked["games"], deterministic=True, return_episode_rewards=True)
    evaluation_s = time.monotonic() - began
    said = {"mean": sum(returns) / len(returns), "env_steps": model.num_timesteps, "evaluation_s": evaluation_s}
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()

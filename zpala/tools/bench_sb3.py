"""Measures the speed of stable-baselines3's A2C or PPO on an Atari game, under zpala's protocol and with zpala's hyper-parameters.

Runs as a process of its own, ``python -m zpala.tools.bench_sb3 '<settings as JSON>'``, and says one JSON object. stable-baselines3 and
OpenCV are the extra ``bench``; nothing of zpala's training is imported here, so nothing of it can change what is measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from zpala.tools.parent import die_with_parent

NO_END = 10**12  # env_steps: the time ends the measurement


@dataclass(frozen=True, slots=True)
class Sb3Settings:
    """What is measured. ``algorithm``: a2c or ppo, ``ppo``: its own settings, by stable-baselines3's names; ``game``: Gymnasium's ALE id;
    ``threads``: of torch in the learner; ``device``: auto, cpu or cuda.
    """

    algorithm: str
    ppo: dict[str, Any]
    game: str
    num_envs: int
    seconds: float
    warmup_s: float
    threads: int
    device: str
    seed: int
    frame_skip: int
    sticky_action_probability: float
    noop_max: int
    max_episode_frames: int
    full_action_space: bool
    num_steps: int
    gamma: float
    entropy_coefficient: float
    value_coefficient: float
    max_grad_norm: float
    gae_lambda: float
    normalize_advantage: bool
    clip_rewards: bool
    lr: float
    epsilon: float


@dataclass(frozen=True, slots=True)
class Sb3Speed:
    """One measurement; ``start_method``: how the environments' processes were started."""

    sps: float
    env_steps: int
    seconds: float
    device: str
    threads: int
    start_method: str
    parameters: int
    versions: dict[str, str]


class Stopwatch:
    """Called by stable-baselines3 after every step of all environments; looks at the clock after the last step of a rollout only,
    so that what it measures is whole updates. False ends the training.

    Args:
        clock: seconds; ``now`` of the begin of the training is its first value.
    """

    def __init__(self, num_envs: int, num_steps: int, seconds: float, warmup_s: float, clock: Any = time.perf_counter) -> None:
        self._num_envs, self._num_steps = num_envs, num_steps
        self._wanted_s, self._warmup_s = seconds, warmup_s
        self._clock = clock
        self._begun = clock()
        self._calls = self._calls_at_first = 0
        self._first: float | None = None
        self.seconds = 0.0
        self.env_steps = 0

    def __call__(self, local_names: dict[str, Any], global_names: dict[str, Any]) -> bool:
        self._calls += 1
        if self._calls % self._num_steps != 0:
            return True
        now = self._clock()
        if self._first is None:
            if now - self._begun >= self._warmup_s:
                self._first, self._calls_at_first = now, self._calls
            return True
        self.seconds = now - self._first
        self.env_steps = (self._calls - self._calls_at_first) * self._num_envs
        return self.seconds < self._wanted_s


def measure(settings: Sb3Settings) -> Sb3Speed:
    """Trains for the warm-up and ``settings.seconds`` more."""
    import ale_py
    import gymnasium
    import stable_baselines3
    import torch
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

    gymnasium.register_envs(ale_py)
    start_method = "fork"  # one copy of the libraries for all processes; they are started before torch has any thread
    environments = make_atari_env(
        settings.game,
        n_envs=settings.num_envs,
        seed=settings.seed,
        env_kwargs={
            "frameskip": 1,
            "repeat_action_probability": settings.sticky_action_probability,
            "full_action_space": settings.full_action_space,
            "max_num_frames_per_episode": settings.max_episode_frames,
        },
        wrapper_kwargs={
            "noop_max": settings.noop_max,
            "frame_skip": settings.frame_skip,
            "terminal_on_life_loss": False,
            "clip_reward": settings.clip_rewards,
        },
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={"start_method": start_method},
    )
    try:
        torch.set_num_threads(settings.threads)
        own: dict[str, Any] = {"rms_prop_eps": settings.epsilon} if settings.algorithm == "a2c" else settings.ppo
        model = {"a2c": A2C, "ppo": PPO}[settings.algorithm](
            "CnnPolicy",
            VecFrameStack(environments, n_stack=4),
            learning_rate=settings.lr,
            n_steps=settings.num_steps,
            gamma=settings.gamma,
            ent_coef=settings.entropy_coefficient,
            vf_coef=settings.value_coefficient,
            max_grad_norm=settings.max_grad_norm,
            gae_lambda=settings.gae_lambda,
            normalize_advantage=settings.normalize_advantage,
            seed=settings.seed,
            device=settings.device,
            **own,
        )
        stopwatch = Stopwatch(settings.num_envs, settings.num_steps, settings.seconds, settings.warmup_s)
        model.learn(NO_END, callback=stopwatch)
    finally:
        environments.close()
    return Sb3Speed(
        sps=stopwatch.env_steps / stopwatch.seconds,
        env_steps=stopwatch.env_steps,
        seconds=stopwatch.seconds,
        device=str(model.device),
        threads=torch.get_num_threads(),
        start_method=start_method,
        parameters=sum(parameter.numel() for parameter in model.policy.parameters()),
        versions={"stable-baselines3": stable_baselines3.__version__, "torch": torch.__version__, "gymnasium": gymnasium.__version__},
    )


def main() -> None:
    """Measures what the command line says."""
    die_with_parent(os.environ)
    speed = measure(Sb3Settings(**json.loads(sys.argv[1])))
    sys.stdout.write(json.dumps({"event": "sb3", **asdict(speed)}) + "\n")


if __name__ == "__main__":
    main()

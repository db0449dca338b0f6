"""Measures the speed of stable-baselines3's A2C or PPO on an Atari game, under zpala's protocol, or on vectors, with its hyper-parameters.

Runs as a process of its own, ``python -m zpala.tools.bench_sb3 '<settings as JSON>'``, and says one JSON object. stable-baselines3 and
OpenCV are the extra ``bench``. Of zpala nothing but the plain environment of a name is used, so nothing of it can change what is measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from zpala.tools.parent import die_with_parent

NO_END = 10**12  # env_steps: the time ends the measurement
VECTORS = {"subproc": "SubprocVecEnv", "dummy": "DummyVecEnv"}  # how the environments are stepped: in processes of their own, or in a loop
START_METHOD = "fork"  # one copy of the libraries for all processes; they are started before torch has any thread


@dataclass(frozen=True, slots=True)
class Sb3Settings:
    """What is measured.

    Attributes:
        algorithm: a2c or ppo.
        ppo: its own settings, by stable-baselines3's names.
        game: Gymnasium's ALE id; None: not Atari, and ``environment`` with ``args`` and ``max_episode_steps`` names what there is instead,
            learnt by an mlp of ``hidden_sizes`` for the policy and another one for the value.
        vector: of ``VECTORS``.
        threads: of torch in the learner.
        optimizer: rmsprop or adam, torch's.
        device: auto, cpu or cuda.
    """

    algorithm: str
    ppo: dict[str, Any]
    game: str | None
    environment: str
    args: dict[str, Any]
    max_episode_steps: int | None
    vector: str
    hidden_sizes: list[int]
    activation: str
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
    optimizer: str
    epsilon: float


@dataclass(frozen=True, slots=True)
class Sb3Speed:
    """One measurement; ``start_method``: how the environments' processes were started, "" where there are none."""

    sps: float
    env_steps: int
    seconds: float
    device: str
    threads: int
    policy: str
    vector: str
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


class Clocked(Protocol):
    """What stable-baselines3 calls after every step of all environments, until it says False; ``env_steps`` took ``seconds``."""

    env_steps: int
    seconds: float

    def __call__(self, local_names: dict[str, Any], global_names: dict[str, Any], /) -> bool: ...


def measure(settings: Sb3Settings, clocked: Clocked | None = None) -> Sb3Speed:
    """Trains for the warm-up and ``settings.seconds`` more, or until ``clocked`` ends it."""
    import gymnasium
    import stable_baselines3
    import torch
    from stable_baselines3 import A2C, PPO

    environments = plain_environments(settings) if settings.game is None else atari_environments(settings.game, settings)
    policy = "MlpPolicy" if settings.game is None else "CnnPolicy"
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[settings.activation]
    try:
        torch.set_num_threads(settings.threads)
        kind = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam}[settings.optimizer]
        network: dict[str, Any] = {"optimizer_class": kind, "optimizer_kwargs": {"eps": settings.epsilon}}
        if settings.game is None:
            network |= {"net_arch": settings.hidden_sizes, "activation_fn": activation}
        own: dict[str, Any] = {} if settings.algorithm == "a2c" else settings.ppo
        model = {"a2c": A2C, "ppo": PPO}[settings.algorithm](
            policy,
            environments,
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
            policy_kwargs=network,
            **own,
        )
        stopwatch = clocked or Stopwatch(settings.num_envs, settings.num_steps, settings.seconds, settings.warmup_s)
        model.learn(NO_END, callback=stopwatch)
    finally:
        environments.close()
    return Sb3Speed(
        sps=stopwatch.env_steps / stopwatch.seconds,
        env_steps=stopwatch.env_steps,
        seconds=stopwatch.seconds,
        device=str(model.device),
        threads=torch.get_num_threads(),
        policy=policy,
        vector=settings.vector,
        start_method=START_METHOD if settings.vector == "subproc" else "",
        parameters=sum(parameter.numel() for parameter in model.policy.parameters()),
        versions={"stable-baselines3": stable_baselines3.__version__, "torch": torch.__version__, "gymnasium": gymnasium.__version__},
    )


def atari_environments(game: str, settings: Sb3Settings) -> Any:
    """The game behind stable-baselines3's wrappers, four frames in an observation."""
    import ale_py
    import gymnasium
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gymnasium.register_envs(ale_py)
    environments = make_atari_env(
        game,
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
        **_vector(settings),
    )
    return VecFrameStack(environments, n_stack=4)


def plain_environments(settings: Sb3Settings) -> Any:
    """Gymnasium environments, each behind stable-baselines3's ``Monitor``."""
    from gymnasium.wrappers import TransformReward
    from stable_baselines3.common.env_util import make_vec_env

    from zpala.rl.simulators import plain_environment

    def make() -> Any:
        env = plain_environment(settings.environment, settings.args, settings.max_episode_steps)
        if env is None:
            raise ValueError(f"{settings.environment} is a vector environment")
        return TransformReward(env, lambda reward: min(1.0, max(-1.0, float(reward)))) if settings.clip_rewards else env

    return make_vec_env(make, n_envs=settings.num_envs, seed=settings.seed, **_vector(settings))


def _vector(settings: Sb3Settings) -> dict[str, Any]:
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    if settings.vector == "dummy":
        return {"vec_env_cls": DummyVecEnv}
    return {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": START_METHOD}}


def main() -> None:
    """Measures what the command line says."""
    die_with_parent(os.environ)
    speed = measure(Sb3Settings(**json.loads(sys.argv[1])))
    sys.stdout.write(json.dumps({"event": "sb3", **asdict(speed)}) + "\n")


if __name__ == "__main__":
    main()

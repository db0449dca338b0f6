"""The run file: every setting of zpala, its one default, its one-line description, and where a wrong value came from.

Owns the pydantic models, the merge of the five sources and the text of configuration errors. It starts nothing, imports no torch and reads
no file but the run file and the shipped presets. Precedence: command line > ``ZPALA_*`` variable > run file (TOML) > preset > default.
Units stand in the names (``_s`` seconds, ``_frames`` emulator frames, ``env_steps`` agent decisions).
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from zpala.config_source import Source, closest, parse_value, toml_source, toml_value
from zpala.gossip.settings import GossipSettings

if TYPE_CHECKING:
    from zpala.rl.environments import AtariSettings

# Options of the command line that have a name of their own, and the field that each sets. ``ZPALA_<OPTION>`` sets the same field.
OPTION_FIELDS: Mapping[str, str] = {
    "preset": "preset",
    "env": "environment.id",
    "algorithm": "algorithm.name",
    "total_env_steps": "run.total_env_steps",
    "target_return": "run.target_return",
    "num_envs": "environment.num_envs",
    "num_steps": "algorithm.num_steps",
    "lr": "optimizer.lr",
    "seed": "run.seed",
    "run_dir": "run.directory",
    "device": "node.device",
    "topology": "gossip.topology",
    "max_staleness": "gossip.max_staleness",
    "max_lead": "gossip.max_lead",
    "on_diverged": "gossip.on_diverged",
    "gossip": "gossip.enabled",
    "wait_for": "gossip.wait_for",
    "start_timeout": "gossip.start_timeout_s",
    "listen": "node.listen",
    "name": "node.name",
    "key": "node.key",
    "insecure": "node.insecure",
}


# The learning algorithms that zpala brings along; ``zpala.rl.algorithms`` has their classes.
ALGORITHM_NAMES = ("a2c", "ppo", "nstep_q", "dqn", "vtrace")
REUSING = ("a2c", "vtrace", "nstep_q")  # those that learn from a rollout once, with the parameters that they acted with

# Fields that are tables of somebody else's arguments, and the option that sets one of them.
TABLES: Mapping[str, str] = {"environment.args": "env-arg", "algorithm.args": "algorithm-arg"}


class ConfigError(Exception):
    """A setting is wrong: one paragraph that names the source, the line, the field and the fix. Nothing was started (exit status 2)."""


class Section(BaseModel):
    """Settings are frozen, unknown keys are refused and types are not coerced (``"5"`` is no number)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Probability = Annotated[float, Field(ge=0, le=1)]


class RunConfig(Section):
    seed: int = Field(1, ge=0, lt=2**31, description="Root seed; every node, actor and environment derives its own from it.")
    total_env_steps: int = Field(1_000_000, ge=1, description="Budget of the whole cluster in env_steps (agent decisions, not frames).")
    target_return: float | None = Field(
        None, description="Stop early when every live node's mean raw return of its last 100 games has reached this."
    )
    directory: Path | None = Field(None, strict=False, description="Run directory; without it a new one under runs/.")
    log_interval_s: float = Field(10.0, gt=0, description="Seconds between two rows of metrics.")


class EnvironmentConfig(Section):
    id: str = Field("CartPole-v1", min_length=1, description="Gymnasium id, Atari id or module:factory.")
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the environment (--env-arg key=value).")
    num_envs: int = Field(16, ge=1, le=65_536, description="Environments of one node.")
    frame_skip: int = Field(4, ge=1, description="Atari: emulator frames per env_step.")
    sticky_action_probability: float = Field(0.0, ge=0, lt=1, description="Atari: probability that the last action is repeated.")
    noop_max: int = Field(30, ge=0, description="Atari: at most this many random no-ops at the start of a game.")
    max_episode_frames: int = Field(108_000, ge=1, description="Atari: a game is truncated after this many emulator frames.")
    full_action_space: bool = Field(False, description="Atari: all 18 actions instead of the game's own.")
    life_loss: bool = Field(False, description="Atari: a lost life counts as terminated for learning; games and returns stay whole.")
    max_episode_steps: int | None = Field(None, ge=1, description="Any game is truncated after so many env_steps.")

    @field_validator("id")
    @classmethod
    def _absolute(cls, name: str) -> str:
        """As of an algorithm: a file is named by its absolute path from here on."""
        return _absolute_file(name)

    @property
    def label(self) -> str:
        """The id without the folder of a file."""
        return file_label(self.id)

    def atari_settings(self) -> AtariSettings:
        """The part of these settings that only Atari games have, as ``zpala.rl`` takes it."""
        from zpala.rl.environments import AtariSettings

        names = ("frame_skip", "sticky_action_probability", "noop_max", "max_episode_frames", "full_action_space", "life_loss")
        return AtariSettings(**{name: getattr(self, name) for name in names})


class NetworkConfig(Section):
    name: Literal["auto", "mlp", "nature_cnn", "nips_cnn", "impala_resnet"] = Field(
        "auto", description="auto: nature_cnn for images, mlp for vectors."
    )
    separate_critic: bool | Literal["auto"] = Field(
        "auto", description="A trunk of its own for the value instead of one for both; auto: for the mlp without a core."
    )
    core: Literal["none", "lstm"] = Field("none", description="A memory between trunk and heads, forgotten when a game begins.")
    core_size: int = Field(128, ge=1, description="Units of the core.")
    normalize_observations: bool = Field(
        False, description="Vectors get mean 0 and standard deviation 1 by running statistics, which nodes merge."
    )
    squash_actions: bool = Field(
        False, description="Box actions: tanh of a Gaussian within the bounds, instead of a Gaussian that is clipped."
    )
    dueling: bool = Field(False, description="Q-learning: values of actions from a value and advantages.")
    hidden_sizes: tuple[int, ...] = Field((64, 64), strict=False, description="Widths of the hidden layers of the mlp.")
    activation: Literal["tanh", "relu"] = Field("tanh", description="Activation of the mlp.")
    channels_last: bool | Literal["auto"] = Field("auto", description="Memory layout of image activations; parameters never change.")
    precision: Literal["float32", "tf32", "bf16"] = Field(
        "float32", description="Arithmetic of the trunks; bf16: bfloat16, tf32: on CUDA. Parameters stay float32, nodes may differ."
    )
    initial_weights: Literal["orthogonal", "contrast"] = Field(
        "orthogonal", description="contrast: images excite the first units by what differs within them, and ten times more strongly."
    )


class AlgorithmConfig(Section):
    name: str = Field(
        "a2c", description=f"Learning algorithm: {', '.join(ALGORITHM_NAMES)}, or one's own: path/to/mine.py:Class or module:Class."
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Settings of an algorithm of one's own (--algorithm-arg key=value).")
    num_steps: int = Field(5, ge=1, le=65_536, description="env_steps per environment and update (length of a rollout).")
    gamma: float = Field(0.99, gt=0, le=1, description="Discount per env_step.")
    gae_lambda: float = Field(1.0, ge=0, le=1, description="Generalised advantages; 1: n-step returns, 0: one-step targets.")
    entropy_coefficient: float = Field(0.01, ge=0, description="Weight of the mean entropy bonus.")
    value_coefficient: float = Field(0.5, ge=0, description="Weight of the mean squared value error.")
    max_grad_norm: float = Field(0.5, gt=0, description="Gradients are scaled down to this global L2 norm.")
    normalize_advantage: bool | Literal["auto"] = Field(
        "auto", description="Advantages (of a rollout, in ppo of a minibatch) get mean 0 and standard deviation 1; auto: in ppo."
    )
    clip_rewards: bool = Field(False, description="Clip rewards to [-1, 1] for learning; logged returns stay raw.")
    reuse_activations: bool | Literal["auto"] = Field(
        "auto", description="a2c, vtrace, nstep_q: no second forward pass of convolutions to learn; auto: on a CPU."
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        """A file is named by its absolute path from here on: a run directory is read from anywhere."""
        if name in ALGORITHM_NAMES:
            return name
        module, _, attribute = name.rpartition(":")
        if not module or not attribute.isidentifier():
            close = [f"{name}:Class"] if name.endswith(".py") else difflib.get_close_matches(name.lower(), ALGORITHM_NAMES, n=1, cutoff=0.5)
            hint = f' (did you mean "{close[0]}"?)' if close else ""
            raise ValueError(f"expected {', '.join(ALGORITHM_NAMES)}, path/to/mine.py:Class or module:Class{hint}")
        return _absolute_file(name)

    @property
    def label(self) -> str:
        """The name without the folder of a file: the same on every machine."""
        return algorithm_label(self.name)

    @model_validator(mode="after")
    def _check(self) -> AlgorithmConfig:
        if self.reuse_activations is True and self.name in ALGORITHM_NAMES and self.name not in REUSING:
            raise ValueError(
                f'reuse_activations = true is for {", ".join(REUSING)}: name = "{self.name}" learns with other parameters than it acted '
                'with. Leave reuse_activations at "auto"'
            )
        return self


class PPOConfig(Section):
    epochs: int = Field(10, ge=1, description="How often every step of a rollout is learnt from.")
    minibatch_size: int = Field(64, ge=1, description="env_steps per optimiser step, about: a rollout is cut into equal parts.")
    clip_range: float = Field(0.2, gt=0, description="How far the ratio of new to old probability may leave 1 and still be rewarded.")
    anneal_clip_range: bool = Field(False, description="clip_range falls linearly to 0 with the cluster's progress.")
    clip_range_values: float | None = Field(None, gt=0, description="A value is not pushed further than this from its old one.")
    target_kl: float | None = Field(None, gt=0, description="An update ends early above 1.5 times this KL divergence from the old policy.")


class VTraceConfig(Section):
    rho_clip: float = Field(1.0, gt=0, description="Ratios of new to old probability that weigh errors are at most this.")
    c_clip: float = Field(1.0, gt=0, description="Ratios that pass later errors on to earlier steps are at most this.")
    lag: int = Field(0, ge=0, le=64, description="Act with the parameters of so many updates ago: what staleness costs, and no speed.")


class QLearningConfig(Section):
    """What the value-based algorithms have in common."""

    double: bool = Field(True, description="The network chooses the next action, the target network values it; else the target does both.")
    loss: Literal["huber", "squared"] = Field("huber", description="huber: errors beyond 1 count linearly.")
    target_update_steps: int = Field(100, ge=1, description="The target network follows after so many optimiser steps of the node.")
    target_update_weight: float = Field(1.0, gt=0, le=1, description="By this share of the way; 1: it becomes a copy.")
    exploration_fraction: float = Field(0.1, ge=0, le=1, description="Of the cluster's progress in which epsilon falls linearly from 1.")


class NStepQConfig(QLearningConfig):
    final_epsilons: tuple[Probability, ...] = Field(
        (0.1, 0.01, 0.5), min_length=1, strict=False, description="What epsilon falls to, in different environments."
    )
    epsilon_shares: tuple[Probability, ...] = Field(
        (0.4, 0.3, 0.3), strict=False, description="The share of the environments for each of final_epsilons; they sum to 1."
    )

    @model_validator(mode="after")
    def _check(self) -> NStepQConfig:
        if len(self.epsilon_shares) != len(self.final_epsilons) or abs(sum(self.epsilon_shares) - 1.0) > 1e-6:
            raise ValueError(
                f"epsilon_shares = {list(self.epsilon_shares)} must have as many numbers as final_epsilons = {list(self.final_epsilons)} "
                "and sum to 1"
            )
        return self


class DQNConfig(QLearningConfig):
    final_epsilon: float = Field(0.05, ge=0, le=1, description="What epsilon falls to.")
    capacity: int = Field(100_000, ge=1, description="env_steps that the replay of a node holds.")
    batch_size: int = Field(32, ge=1, description="Transitions of one optimiser step.")
    train_frequency: float = Field(4.0, gt=0, description="env_steps of a node for one optimiser step.")
    learning_starts: int = Field(1_000, ge=0, description="No optimiser step before a node has stored so many env_steps.")
    n_steps: int = Field(1, ge=1, description="Steps whose rewards a target sums before the target network's value; fewer at a game's end.")
    prioritized: bool = Field(False, description="Transitions are drawn by their errors and weighted against it.")
    priority_exponent: float = Field(0.6, gt=0, le=1, description="Priority: |error| to this power.")
    priority_beta: float = Field(
        0.4, ge=0, le=1, description="Start of the weights' exponent, which goes to 1 with the cluster's progress."
    )


class OptimizerConfig(Section):
    name: Literal["rmsprop", "adam"] = Field("rmsprop", description="Optimiser; its state stays local to the node.")
    lr: float = Field(7e-4, gt=0, description="Learning rate; never scaled by the number of nodes.")
    alpha: float = Field(0.99, ge=0, lt=1, description="RMSprop: decay of the mean square.")
    epsilon: float = Field(1e-5, gt=0, description="Added to the denominator.")
    epsilon_inside_root: bool = Field(False, description="RMSprop: sqrt(v + epsilon) as TensorFlow 1, else sqrt(v) + epsilon.")
    initial_square_average: float = Field(0.0, ge=0, description="RMSprop: start of the mean square (TensorFlow 1: 1, torch: 0).")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam: decay of the first moment.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam: decay of the second moment.")
    anneal: Literal["linear", "none"] = Field("linear", description="linear: lr falls to 0 with the cluster's progress.")


class GossipConfig(Section):
    enabled: bool = Field(True, description="Average parameters with the neighbours; the cluster still counts one budget without.")
    topology: str = Field("full", min_length=1, description="Shipped name, path to a .py file or to an edge list.")
    max_staleness: int = Field(16, ge=1, description="Updates without fresh news from a neighbour before the gate closes.")
    max_lead: int = Field(0, ge=0, description="Updates ahead of the slowest live neighbour before the gate closes; 0: no limit.")
    slow_factor: float = Field(
        4.0, ge=0, description="max_lead waits for no peer whose updates take this many times the median's for 30 s; 0: for every peer."
    )
    gate_limit_s: float = Field(6.0, gt=0, description="No wait in the gate lasts longer.")
    max_sessions: int = Field(
        16,
        ge=4,
        description="In a longer hosts.txt: peers that a node has sessions with at a time, drawn anew over time; "
        "beside those that have no more neighbours than that.",
    )
    redraw_s: float = Field(10.0, gt=0, description="About how often one of them is given up for another.")
    partner: Literal["uniform", "load"] = Field("uniform", description="Whom to ask: any neighbour alike, or of two the less busy one.")
    mixing_weight: float = Field(0.5, gt=0, le=0.5, description="w of x += w (peer - own).")
    initial: Literal["adopt", "own"] = Field("adopt", description="adopt: all start from one node's parameters.")
    wait_for: int | Literal["all"] = Field("all", description="Nodes to wait for at the start.")
    start_timeout_s: float = Field(
        60.0, ge=0, description="Seconds to wait for the others; then the run starts with the nodes that are there."
    )
    heartbeat_s: float = Field(0.5, gt=0, description="Interval of heartbeats.")
    suspect_s: float = Field(2.0, gt=0, description="Silence after which a peer gets no offers.")
    dead_s: float = Field(5.0, gt=0, description="Silence after which a peer counts as dead and frees the gate.")
    stall_s: float = Field(10.0, gt=0, description="Time without progress after which a live peer no longer holds the gate.")
    hello_s: float = Field(3.0, gt=0, description="Interval between attempts to reach a peer.")
    offer_timeout_s: float = Field(1.0, gt=0, description="Wait for an answer to an offer.")
    exchange_timeout_s: float = Field(5.0, gt=0, description="Longest exchange before it is aborted or in doubt.")
    retransmit_s: float = Field(0.4, gt=0, description="Interval between repetitions of FETCH and OK.")
    keep_s: float = Field(10.0, gt=0, description="A delta from an exchange in doubt is applied within this time, later it is a defect.")
    drain_s: float = Field(10.0, ge=0, description="Longest drain at the end of the run.")
    drain_distance: float = Field(1e-3, gt=0, description="Relative distance at which two finished neighbours are close.")
    max_share: float = Field(
        0.05, gt=0, le=1, description="Share of one core that gossip may take before own offers wait; the gate and the end do not wait."
    )
    max_norm_ratio: float = Field(10.0, gt=1, description="A peer's vector is refused above this multiple of the own norm.")
    max_distance: float = Field(1.0, gt=0, description="Relative distance above which two nodes have diverged.")
    on_diverged: Literal["exit", "bootstrap", "average"] = Field(
        "exit", description="A diverged node stops, adopts the state of the node that has more updates, or is averaged with all the same."
    )

    @model_validator(mode="after")
    def _check(self) -> GossipConfig:
        self.settings()  # refuses values that break an argument of the protocol, and says which argument
        return self

    def settings(self) -> GossipSettings:
        """The same numbers as the plain record that the protocol takes."""
        return GossipSettings(**self.model_dump())


class NodeConfig(Section):
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: CUDA when there is one; cpu, cuda, cuda:1.")
    actors: int = Field(1, ge=1, description="Actor threads per group.")
    groups: int | Literal["auto"] = Field("auto", description="Groups of actors; auto: 1 on a CPU, 2 with an accelerator.")
    cuda_graphs: bool | Literal["auto"] = Field(
        "auto", description="Record what acting and learning compute, and replay it; auto: on CUDA, with an algorithm of zpala's own."
    )
    compile: bool = Field(
        False, description="Let torch.compile make one function of many small ones: on a CPU, without images; needs a C++ compiler."
    )
    threads: int | Literal["auto"] = Field(
        "auto", description="Threads of torch and ALE; auto: cores / nodes on this machine, 1 without images."
    )
    max_memory_mb: int | Literal["auto"] = Field(
        "auto", description="Memory of its own, in 10^6 bytes, beyond which the node ends with a checkpoint; auto: 90 % of what there is."
    )
    key: Path | None = Field(
        None, strict=False, description="Secret key file, or a folder of them, when hosts.txt has keys; without it ~/.config/zpala."
    )
    insecure: bool = Field(False, description="Listen on an address that other machines reach, without keys.")
    listen: str | None = Field(None, description="Address to bind, host:port; without it the node's own line decides.")
    name: str | None = Field(None, description="This node's name or host:port in hosts.txt; without it the node claims a line.")

    @model_validator(mode="after")
    def _check(self) -> NodeConfig:
        for field in ("groups", "threads", "max_memory_mb"):
            value = getattr(self, field)
            if isinstance(value, int) and value < 1:
                raise ValueError(f'{field} must be "auto" or at least 1')
        if self.cuda_graphs is True and self.device == "cpu":
            raise ValueError('cuda_graphs = true needs a CUDA device, not device = "cpu". Leave cuda_graphs at "auto"')
        return self


class Config(Section):
    """All settings of one node of one run."""

    preset: str | None = Field(None, description="Name of a shipped set of values, see zpala/presets.")
    run: RunConfig = RunConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    network: NetworkConfig = NetworkConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    ppo: PPOConfig = PPOConfig()
    nstep_q: NStepQConfig = NStepQConfig()
    dqn: DQNConfig = DQNConfig()
    vtrace: VTraceConfig = VTraceConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    gossip: GossipConfig = GossipConfig()
    node: NodeConfig = NodeConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        groups = self.node.groups if isinstance(self.node.groups, int) else 1
        if self.node.actors * groups > self.environment.num_envs:
            raise ValueError(
                f"node.actors x node.groups = {self.node.actors * groups} is more than environment.num_envs = {self.environment.num_envs}: "
                "every actor steps at least one environment"
            )
        rollout = self.algorithm.num_steps * self.environment.num_envs
        if self.algorithm.name == "dqn" and self.dqn.capacity < rollout:
            raise ValueError(
                f"dqn.capacity = {self.dqn.capacity} is less than a rollout, algorithm.num_steps x environment.num_envs = {rollout}: "
                "the replay takes whole rollouts"
            )
        if self.algorithm.reuse_activations is True and self._acts_with_older:
            raise ValueError(
                f"algorithm.reuse_activations = true needs vtrace.lag = 0, not {self.vtrace.lag}: the parameters that act would not be "
                "those that learn"
            )
        if self.node.cuda_graphs is True and self.algorithm.reuse_activations is True:
            raise ValueError(
                "node.cuda_graphs = true does not go with algorithm.reuse_activations = true: what is kept goes to another place at every "
                "step, and a graph has one place for everything. Set one of them to false"
            )
        if self.network.precision == "tf32" and self.node.device == "cpu":
            raise ValueError(
                'network.precision = "tf32" is arithmetic of CUDA devices, not of node.device = "cpu". Use "float32" or "bf16" there: '
                "nodes may differ in it"
            )
        if any(size < 1 for size in self.network.hidden_sizes):
            raise ValueError("network.hidden_sizes must all be at least 1")
        return self

    @property
    def _acts_with_older(self) -> bool:
        return self.algorithm.name == "vtrace" and self.vtrace.lag > 0

    def network_values(self) -> dict[str, Any]:
        """What ``zpala.rl.build_network`` takes by keyword, beside seed, heads and what is a node's own: channels_last, precision."""
        values = self.network.model_dump(exclude={"initial_weights", "channels_last", "precision"})
        return {**values, "contrast": self.network.initial_weights == "contrast"}

    def algorithm_values(self, *, on_cpu: bool = True) -> dict[str, object]:
        """Every setting of the chosen algorithm by name, as ``zpala.rl`` takes them. ``on_cpu``: what "auto" depends on."""
        values: dict[str, object] = self.algorithm.model_dump()
        if self.algorithm.name in SECTIONS:
            values |= getattr(self, self.algorithm.name).model_dump()
        if self.algorithm.normalize_advantage == "auto":
            if self.algorithm.name in ALGORITHM_NAMES:
                values["normalize_advantage"] = self.algorithm.name == "ppo"
            else:
                del values["normalize_advantage"]  # its own default
        if self.algorithm.reuse_activations == "auto":
            if self.algorithm.name in ALGORITHM_NAMES:
                values["reuse_activations"] = on_cpu and not self._acts_with_older
            else:
                del values["reuse_activations"]
        return values

    def to_toml(self) -> str:
        """Every value as a run file that loads to this same configuration. A field without a value (None) is left out."""
        lines = ["# Resolved configuration of a zpala run: every value that was in force."]
        if self.preset is not None:
            lines.append(f"preset = {toml_value(self.preset)}")
        for name in SECTIONS:
            lines += ["", f"[{name}]"]
            section = getattr(self, name)
            for field in type(section).model_fields:
                value = getattr(section, field)
                if value is not None:
                    lines.append(f"{field} = {toml_value(value)}")
        return "\n".join(lines) + "\n"


SECTIONS: tuple[str, ...] = tuple(name for name in Config.model_fields if name != "preset")


def algorithm_label(name: str) -> str:
    """``algorithm.name`` without the folder of a file."""
    return file_label(name)


def file_label(name: str) -> str:
    """``path/to/file.py:attribute`` without the folders; every other name as it is."""
    return os.path.basename(name) if _names_file(name) else name


def _names_file(name: str) -> bool:
    return name.rpartition(":")[0].endswith(".py")


def _absolute_file(name: str) -> str:
    """``path/to/file.py:attribute`` with its absolute path, every other name as it is: a run directory is read from anywhere."""
    return os.path.abspath(name) if _names_file(name) else name


def fields() -> Iterator[tuple[str, Any]]:
    """(dotted name, pydantic field) of every setting."""
    yield "preset", Config.model_fields["preset"]
    for section in SECTIONS:
        model = Config.model_fields[section].annotation
        for name, field in model.model_fields.items():  # type: ignore[union-attr]
            yield f"{section}.{name}", field


def load_config(run_file: Path | None, overrides: Mapping[str, object], environ: Mapping[str, str]) -> Config:
    """Merge defaults, preset, run file, ``ZPALA_*`` variables and ``overrides`` (dotted name -> value, the command line) into one Config.

    Raises ConfigError with one paragraph that names the source, the field and the fix.
    """
    sources = [_command_line_source(overrides), _environment_source(environ)]
    if run_file is not None:
        sources.append(_file_source(run_file))
    for source in sources:
        _check_keys(source)
    preset = next((value for source in sources for value in [source.values.get("preset")] if value is not None), None)
    if preset is not None:
        sources.append(_preset_source(preset, next(source for source in sources if source.values.get("preset") is not None)))

    tree: dict[str, Any] = {}
    origin: dict[str, Source] = {}
    for source in reversed(sources):
        for key, value in source.values.items():
            origin[key] = source
            _put(tree, key, value)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, origin)) from None


def parse_assignment(text: str) -> tuple[str, object]:
    """``section.field=value`` of ``--set`` -> (dotted name, value)."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"--set {text!r}: expected section.field=value, for example --set gossip.max_staleness=32.")
    return name.strip(), _setting_value(name.strip(), value)


def parse_argument(table: str, text: str) -> tuple[str, object]:
    """``key=value`` of the option that sets an entry of ``table`` (a name of ``TABLES``) -> (dotted name, value)."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip().isidentifier():
        option = TABLES[table]
        raise ConfigError(f"--{option} {text!r}: expected key=value with the name of an argument, for example --{option} size=8.")
    return f"{table}.{name.strip()}", parse_value(value)


def option_value(field: str, text: str) -> object:
    """What ``text``, given as an option or a variable, means for ``field``: itself where the field is a text, else a TOML value."""
    return text if _is_text(field) else _setting_value(field, text)


def _setting_value(field: str, text: str) -> object:
    """``none`` is a choice where the field has it among its choices, and no value elsewhere."""
    known = dict(fields()).get(field)
    if text.strip() == "none" and known is not None and "none" in get_args(known.annotation):
        return "none"
    return parse_value(text)


def _presets() -> Traversable:
    return resources.files("zpala").joinpath("presets")


def preset_names() -> list[str]:
    return sorted(entry.name.removesuffix(".toml") for entry in _presets().iterdir() if entry.name.endswith(".toml"))


# ---------------------------------------------------------------------------------------------------------------------- sources


@cache
def _known() -> frozenset[str]:
    return frozenset(name for name, _ in fields())


def _check_keys(source: Source) -> None:
    """Refuse names that are no setting, offering the closest one."""
    for key, value in source.values.items():
        if key in _known() or _table_of(key) is not None:
            continue
        section, _, field = key.partition(".")
        place = source.place(key)
        if field and section in SECTIONS:
            names = [name.partition(".")[2] for name in _known() if name.startswith(section + ".")]
            raise ConfigError(f"{place}: [{section}] has no field {field!r}. {closest(field, names)}")
        if section in SECTIONS:
            raise ConfigError(f"{place}: {section} is a section and {value!r} no table. Write [{section}] and its fields below it.")
        elsewhere = sorted(name for name in _known() if name.endswith(f".{field or section}"))
        if elsewhere:
            raise ConfigError(f"{place}: there is no {key!r}. Did you mean {' or '.join(elsewhere)}?")
        what = f"section [{section}]" if field else f"field {key!r}"
        raise ConfigError(f"{place}: there is no {what}. {closest(section, ['preset', *SECTIONS])}")


def _command_line_source(overrides: Mapping[str, object]) -> Source:
    flags = {field: f"--{option.replace('_', '-')} (or --set {field})" for option, field in OPTION_FIELDS.items()}
    places = {key: flags.get(key, f"--set {key}") for key in overrides}
    for key in overrides:
        if (table := _table_of(key)) is not None:
            places[key] = f"--{TABLES[table]} {key.removeprefix(f'{table}.')}"
    return Source("", dict(overrides), places)


def _environment_source(environ: Mapping[str, str]) -> Source:
    """``ZPALA_<OPTION>`` and ``ZPALA_<SECTION>_<FIELD>``. A misspelt field of a known section is refused; other names are not ours."""
    variables = {f"ZPALA_{name.replace('.', '_').upper()}": name for name, _ in fields()}
    variables |= {f"ZPALA_{option.upper()}": field for option, field in OPTION_FIELDS.items()}
    values: dict[str, object] = {}
    places: dict[str, str] = {}
    for variable in sorted(environ):
        key = variables.get(variable)
        if key is not None:
            values[key] = option_value(key, environ[variable])
            places[key] = f"environment variable {variable}"
            continue
        of_section = any(variable.startswith(f"ZPALA_{section.upper()}_") for section in SECTIONS)
        of_kubernetes = re.search(r"_SERVICE_|_PORT(_|$)", variable) is not None  # injected for a service that is called zpala-node
        if of_section and not of_kubernetes:
            raise ConfigError(f"environment variable {variable}: there is no such setting. {closest(variable, variables)}")
    return Source("", values, places)


def _file_source(path: Path) -> Source:
    try:
        return _read_toml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the run file ({error.strerror}). Name an existing TOML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the run file is not UTF-8 text. Save it as UTF-8.") from None


def _preset_source(name: object, asked_by: Source) -> Source:
    names = preset_names()
    if name not in names:
        raise ConfigError(f"{asked_by.place('preset')}: there is no preset {name!r}. {closest(str(name), names)}")
    source = _read_toml(_presets().joinpath(f"{name}.toml").read_text(encoding="utf-8"), f"preset {name}")
    _check_keys(source)
    return source


def _read_toml(text: str, name: str) -> Source:
    try:
        return toml_source(text, name)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}. Strings stand in quotes, sections in [brackets].") from None


def _table_of(key: str) -> str | None:
    """The table of arguments that ``key`` is an entry of."""
    return next((table for table in TABLES if key.startswith(f"{table}.")), None)


def _is_text(key: str) -> bool:
    """Is the field a plain text (then ``ZPALA_NAME=5`` means the text "5")?"""
    annotation = dict(fields())[key].annotation
    return annotation is str or str in get_args(annotation) or Path in get_args(annotation)


def _put(tree: dict[str, Any], key: str, value: object) -> None:
    section, _, field = key.partition(".")
    if not field:
        tree[section] = value
        return
    branch = tree.setdefault(section, {})
    name, _, argument = field.partition(".")
    if argument:
        branch[name] = {**branch.get(name, {}), argument: value}
    elif key in TABLES and isinstance(value, dict):
        branch[name] = {**branch.get(name, {}), **value}
    else:
        branch[name] = value


# ---------------------------------------------------------------------------------------------------------------------- errors


def _explain(error: ValidationError, origin: Mapping[str, Source]) -> str:
    """The first wrong value as one paragraph: place, field, value, what is allowed."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path[:2])
    if first["type"] == "value_error" and len(path) < 2:  # a cross-field check: name every place that set one of the fields it mentions
        message = str(first["ctx"]["error"])
        section = path[0] if path else ""
        mentioned = [name for name, _ in fields() if re.search(rf"\b{name if not section else name.partition('.')[2]}\b", message)]
        places = [origin[name].place(name) for name in mentioned if name in origin and (not section or name.startswith(section + "."))]
        return f"{'; '.join(dict.fromkeys(places)) or 'configuration'}: {f'[{section}] ' if section else ''}{message}."
    place = origin[key].place(key) if key in origin else "configuration"
    description = dict(fields())[key].description if key in _known() else ""
    return f"{place}: {key} = {first['input']!r} is not allowed: {_allowed(key, first)}. ({description})"


def _allowed(key: str, first: Any) -> str:
    if first["type"] == "value_error":  # from a validator of that field
        return str(first["ctx"]["error"])
    field = dict(fields())[key]
    words = [text for argument in (field.annotation, *get_args(field.annotation)) for text in _type_words(argument)]
    if first["type"] == "string_pattern_mismatch":
        return 'expected "auto", "cpu", "cuda" or "cuda:<number>"'
    if first["type"] == "string_too_short":
        return "expected a text that is not empty"
    if first["type"] in {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}:
        limit = str(first["msg"]).removeprefix("Input should be ")
        return f"expected {limit[:1].lower()}{limit[1:]}"
    text = f"expected {' or '.join(dict.fromkeys(words))}"
    names = [word.strip('"') for word in words if word.startswith('"')]
    if isinstance(first["input"], str) and (close := difflib.get_close_matches(first["input"].lower(), names, n=1, cutoff=0.5)):
        text += f' (did you mean "{close[0]}"?)'
    return text


def _type_words(annotation: object) -> list[str]:
    if getattr(annotation, "__origin__", None) is Literal:
        return [json.dumps(value) for value in get_args(annotation)]
    if getattr(annotation, "__origin__", None) is tuple:
        return ["a list of whole numbers"]
    if getattr(annotation, "__origin__", None) is dict:
        return ["a table of arguments"]
    names: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text in quotes", Path: "a path"}
    word = names.get(annotation)
    return [word] if word is not None else []

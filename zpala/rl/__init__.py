"""Reinforcement learning on tensors: environments, networks, rollouts, returns, algorithms. Never threads, never a network connection."""

from zpala.rl.a2c import A2C, A2CLoss, A2CSettings, a2c_loss
from zpala.rl.action_spaces import ActionSpace, Box, Discrete, MultiDiscrete
from zpala.rl.algorithm import Algorithm, Statistics
from zpala.rl.algorithms import ALGORITHMS, AlgorithmError, build_algorithm, build_settings, find_algorithm
from zpala.rl.dqn import DQN, DQNSettings
from zpala.rl.environments import (
    AtariSettings,
    Environments,
    EnvironmentSpec,
    Episode,
    StepRow,
    UnknownEnvironment,
    UnsupportedEnvironment,
    environment_spec,
    make_environments,
)
from zpala.rl.execution import Eager, Executor
from zpala.rl.exploration import EpsilonGreedy
from zpala.rl.flat import FlatEntry, FlatParameters
from zpala.rl.graphs import CudaRecorder, Graphs
from zpala.rl.inputs import Inputs, Normalizer, Unpacking
from zpala.rl.lstm import LSTM
from zpala.rl.networks import ActionValues, ActorCritic, Network, Output, Step, build_network
from zpala.rl.nstep_q import NStepQ, NStepQSettings
from zpala.rl.observations import ObservationPart, unpack
from zpala.rl.optimizers import Adam, Optimizer, OptimizerSettings, RMSprop, build_optimizer, clip_gradient_norm
from zpala.rl.policies import Categorical, Evaluated, Gaussian, MultiCategorical, Policy, SquashedGaussian, policy_for
from zpala.rl.policy_gradient import Batch, PolicyGradient, PolicyGradientSettings, explained_variance
from zpala.rl.ppo import PPO, PPOLoss, PPOSettings, ppo_loss
from zpala.rl.q_learning import QLearning, QLearningSettings, q_loss
from zpala.rl.replay import Replay, Transitions
from zpala.rl.returns import Discounts, discounts, lambda_returns, n_step_returns
from zpala.rl.rollout import PerStep, Rollout
from zpala.rl.schedules import linear
from zpala.rl.seeding import actor_seed, environment_seeds, node_seed, torch_seed
from zpala.rl.target import TargetNetwork
from zpala.rl.trunks import MLP, Combined, ImpalaResNet, NatureCNN, NipsCNN, Trunk
from zpala.rl.vtrace import VTrace, VTraceSettings, VTraceTargets, vtrace_targets

__all__ = [
    "A2C",
    "ALGORITHMS",
    "DQN",
    "LSTM",
    "MLP",
    "PPO",
    "A2CLoss",
    "A2CSettings",
    "ActionSpace",
    "ActionValues",
    "ActorCritic",
    "Adam",
    "Algorithm",
    "AlgorithmError",
    "AtariSettings",
    "Batch",
    "Box",
    "Categorical",
    "Combined",
    "CudaRecorder",
    "DQNSettings",
    "Discounts",
    "Discrete",
    "Eager",
    "EnvironmentSpec",
    "Environments",
    "Episode",
    "EpsilonGreedy",
    "Evaluated",
    "Executor",
    "FlatEntry",
    "FlatParameters",
    "Gaussian",
    "Graphs",
    "ImpalaResNet",
    "Inputs",
    "MultiCategorical",
    "MultiDiscrete",
    "NStepQ",
    "NStepQSettings",
    "NatureCNN",
    "Network",
    "NipsCNN",
    "Normalizer",
    "ObservationPart",
    "Optimizer",
    "OptimizerSettings",
    "Output",
    "PPOLoss",
    "PPOSettings",
    "PerStep",
    "Policy",
    "PolicyGradient",
    "PolicyGradientSettings",
    "QLearning",
    "QLearningSettings",
    "RMSprop",
    "Replay",
    "Rollout",
    "SquashedGaussian",
    "Statistics",
    "Step",
    "StepRow",
    "TargetNetwork",
    "Transitions",
    "Trunk",
    "UnknownEnvironment",
    "Unpacking",
    "UnsupportedEnvironment",
    "VTrace",
    "VTraceSettings",
    "VTraceTargets",
    "a2c_loss",
    "actor_seed",
    "build_algorithm",
    "build_network",
    "build_optimizer",
    "build_settings",
    "clip_gradient_norm",
    "discounts",
    "environment_seeds",
    "environment_spec",
    "explained_variance",
    "find_algorithm",
    "lambda_returns",
    "linear",
    "make_environments",
    "n_step_returns",
    "node_seed",
    "policy_for",
    "ppo_loss",
    "q_loss",
    "torch_seed",
    "unpack",
    "vtrace_targets",
]

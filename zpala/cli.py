"""The command line: options -> configuration -> one call. No logic of its own, and nothing heavy is imported before a command needs it.

Every option of ``node`` and ``launch`` that names a setting is made from ``config.OPTION_FIELDS``: name, help and default stand there.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from zpala import __version__, config
from zpala.exit_codes import ExitCode

app = typer.Typer(
    name="zpala",
    help="Actor-learners on many machines that gossip their parameters: the same command on every machine, no broker, no head node.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
topology_app = typer.Typer(help="The graphs of who may gossip with whom.", no_args_is_help=True)
env_app = typer.Typer(help="The environments that there are, and what is wrong with one.", no_args_is_help=True)
bench_app = typer.Typer(help="How fast a node and its parts are on this machine, and what the parts allow.", no_args_is_help=True)
config_app = typer.Typer(help="The run file and its values.", no_args_is_help=True)
keys_app = typer.Typer(help="The key pairs by which nodes know each other.", no_args_is_help=True)
app.add_typer(env_app, name="env")
app.add_typer(topology_app, name="topology")
app.add_typer(bench_app, name="bench")
app.add_typer(config_app, name="config")
app.add_typer(keys_app, name="keys")

EPILOG = (
    "Options for fields of the run file can be given as ZPALA_<OPTION> too. Precedence: command line, variable, run file, preset, default."
)
_PANELS = {"preset": "Run", "run": "Run", "environment": "Environment", "algorithm": "Learner", "optimizer": "Learner", "gossip": "Gossip"}
_ALIASES = {"total_timesteps": "total_env_steps", "env_id": "env", "learning_rate": "lr"}  # names that users of other code bases know

RunFile = Annotated[
    Path | None, typer.Argument(metavar="RUN.toml", help="Run file; without it the defaults and the preset.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Seconds = Annotated[float, typer.Option("--seconds", metavar="X", min=1.0, help="Length of one measurement.")]
Rival = Enum("Rival", {"sync": "sync", "shm": "shm"})
Warmup = Annotated[float, typer.Option("--warmup", metavar="X", min=0.0, help="Seconds of training before it.")]


def _setting(option: str, field: str, hidden: bool) -> inspect.Parameter:
    """One option of a setting. It takes text, and ``config`` judges it: an error reads the same wherever the value came from."""
    model = dict(config.fields())[field]
    flag = "--" + option.replace("_", "-")
    default = "" if model.default is None else f" (default {model.default})"
    info: dict[str, Any] = {"help": f"{model.description}{default}", "hidden": hidden, "show_default": False}
    info["rich_help_panel"] = "Node" if field == "node.device" else _PANELS.get(field.partition(".")[0], "Network")
    if model.annotation is bool:
        names = flag if option == "insecure" else f"{flag}/--no-{flag[2:]}"
        annotation: Any = Annotated[bool | None, typer.Option(names, **info)]
    else:
        names = flag
        annotation = Annotated[str | None, typer.Option(names, metavar=_metavar(model.annotation), **info)]
    return inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _metavar(annotation: object) -> str:
    text = str(annotation)
    if "all" in text:
        return "all|N"
    return "N" if annotation is int else "X" if "float" in text else "PATH" if "Path" in text else "TEXT"


def _repeated(name: str, flag: str, metavar: str, text: str, panel: str) -> inspect.Parameter:
    annotation = Annotated[list[str] | None, typer.Option(flag, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives ``command`` the options of all settings; it receives them merged, as its argument ``overrides``."""
    own = [parameter for name, parameter in inspect.signature(command, eval_str=True).parameters.items() if name != "overrides"]
    settings = [_setting(option, field, hidden=False) for option, field in config.OPTION_FIELDS.items()]
    settings += [_setting(alias, config.OPTION_FIELDS[option], hidden=True) for alias, option in _ALIASES.items()]
    settings.append(_repeated("env_arg", "--env-arg", "KEY=VALUE", "Argument of the environment; may be repeated.", "Environment"))
    text = "Setting of an algorithm of one's own; may be repeated."
    settings.append(_repeated("algorithm_arg", "--algorithm-arg", "KEY=VALUE", text, "Learner"))
    settings.append(_repeated("set_", "--set", "SECTION.FIELD=VALUE", "Any field of the run file; may be repeated.", "Run"))

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        given = {setting.name: values.pop(setting.name) for setting in settings}
        command(**values, overrides=_overrides(given))

    parameters = [*own, *settings]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _overrides(given: dict[str, Any]) -> dict[str, object]:
    """Options as typed -> dotted name of the setting -> value."""
    overrides: dict[str, object] = {}
    for option, value in given.items():
        field = config.OPTION_FIELDS.get(_ALIASES.get(option, option))
        if field is not None and value is not None:
            overrides[field] = value if isinstance(value, bool) else config.option_value(field, value)
    for table, option in config.TABLES.items():
        overrides.update(config.parse_argument(table, text) for text in given[option.replace("-", "_")] or [])
    for text in given["set_"] or []:
        overrides.update([config.parse_assignment(text)])
    return overrides


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=lambda value: _print_version() if value else None
        ),
    ] = False,
) -> None:
    pass


@app.command(epilog=EPILOG)
@_with_settings
def node(
    peers: Annotated[
        Path,
        typer.Option(
            "--peers",
            metavar="HOSTS.txt",
            envvar="ZPALA_PEERS",
            help="All nodes: a line '\\[name] host:port \\[key]' each, may grow during the run. Or dns:NAME:PORT: all addresses of a name.",
        ),
    ],
    run_file: RunFile = None,
    *,
    overrides: dict[str, object],
) -> None:
    """Run one node: the same command on every machine. It takes the line of HOSTS.txt that is this machine's and free."""
    settings = config.load_config(run_file, overrides, os.environ)
    from zpala.tools.start import start_node

    raise typer.Exit(start_node(settings, peers=peers))


@app.command(epilog=EPILOG)
@_with_settings
def launch(
    run_file: RunFile = None,
    nodes: Annotated[int, typer.Option("--nodes", "-n", metavar="N", min=1, max=256, help="Nodes to start on this machine.")] = 4,
    *,
    overrides: dict[str, object],
) -> None:
    """Start N nodes on this machine, show one table for all of them and stop them together."""
    settings = config.load_config(run_file, overrides, os.environ)
    from zpala.tools.launch import launch as launch_nodes

    raise typer.Exit(launch_nodes(settings, nodes=nodes))


@app.command("eval")
def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories of one run; several if its nodes had one each.")],
    episodes: Annotated[int, typer.Option("--episodes", metavar="N", min=1, help="Games per agent.")] = 30,
    node: Annotated[
        str | None, typer.Option("--node", metavar="NAME", help="Only this node, and no mean model.", show_default=False)
    ] = None,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Sample actions instead of taking the best; Q-learning: epsilon 0.05.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the games; never equal to those of training.")] = 0,
    device: Annotated[str, typer.Option("--device", metavar="TEXT", help="cpu, cuda or cuda:1.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Let the final agent of every node, and the mean of all of them, play."""
    from zpala.tools.evaluate import evaluate_runs

    evaluation = evaluate_runs(runs, episodes=episodes, node=node, stochastic=stochastic, seed=seed, device=device)
    _print(evaluation.json() if as_json else evaluation.table())


@app.command()
def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories, finished or running, or .csv files of earlier plots.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.png", help="The picture; the points go into FILE.csv beside it.", show_default=False),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", metavar="TEXT", help="Name of a run; repeat it, once per run.", show_default=False)
    ] = None,
    sps: Annotated[bool, typer.Option("--sps", help="A third panel: env_steps per second.")] = False,
) -> None:
    """Draw the learning curves of runs and say how fast their nodes were, at the end as at the beginning."""
    from zpala.tools.plot import plot_runs

    _print(plot_runs(runs, out=out, labels=labels or (), sps=sps))


@app.command()
def simulate(
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="How many seeds, one after the other.")] = 24,
    nodes: Annotated[str, typer.Option("--nodes", "-n", metavar="N", help="Nodes of a seed, or a range to draw from: 6-12.")] = "12",
    seconds: Annotated[float, typer.Option("--seconds", metavar="X", min=60.0, help="Virtual seconds of a seed.")] = 120.0,
    faults: Annotated[
        list[str] | None,
        typer.Option("--fault", metavar="NAME", help="Only this class of faults; repeatable; none: no fault.", show_default=False),
    ] = None,
    topology: Annotated[
        str | None, typer.Option("--topology", metavar="NAME", help="Default: drawn from full, ring, exponential.", show_default=False)
    ] = None,
    limit: Annotated[float, typer.Option("--limit", metavar="X", min=1.0, help="Begin no further seed after so many seconds.")] = 30.0,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", metavar="N", min=1, help="Processes; default: one per core.", show_default=False)
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Distance over virtual time, a line per seed.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Play the gossip of many nodes with faults, on a virtual network. Exit status 1 if anything that must hold did not."""
    from zpala.tools.simulate import draw, run_campaign

    campaign = run_campaign(
        seeds=seeds,
        first_seed=seed,
        nodes=nodes,
        seconds=seconds,
        faults=faults or (),
        topology=topology,
        limit_s=limit,
        jobs=jobs,
        say=lambda text: typer.echo(text, err=True),
    )
    if picture is not None:
        draw(campaign, picture)
    _print(campaign.json() if as_json else campaign.text())
    raise typer.Exit(ExitCode.UNEXPECTED if campaign.failures else ExitCode.FINISHED)


@topology_app.command("list")
def topology_list() -> None:
    """The topologies that zpala brings along."""
    from zpala.tools.topologies import listing

    _print(listing())


@topology_app.command("check")
def topology_check(
    name: Annotated[str, typer.Argument(metavar="TOPOLOGY", help="Shipped name, path to a .py file or to an edge list.")],
    nodes: Annotated[int, typer.Option("--nodes", "-n", metavar="N", min=1, help="Number of nodes.")] = 4,
    peers: Annotated[
        Path | None, typer.Option("--peers", metavar="HOSTS.txt", help="Count the nodes of this file instead.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Is the graph symmetric and connected, and how fast does it average? Exit status 2 if it cannot be used."""
    from zpala.tools.start import read_hosts
    from zpala.tools.topologies import examine

    size = nodes if peers is None else len(read_hosts(peers)[1])
    examination = examine(name, size)
    _print(examination.json() if as_json else examination.text())
    raise typer.Exit(ExitCode.FINISHED if examination.usable else ExitCode.USAGE)


@env_app.command("list")
def env_list(
    word: Annotated[str, typer.Argument(metavar="WORD", help="Only names that contain it, in any case.", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """The environments that are installed, and how one of your own is named."""
    from zpala.tools.environment_list import listing

    found = listing(word)
    _print(found.json() if as_json else found.text())


@env_app.command("check")
def env_check(
    name: Annotated[str, typer.Argument(metavar="ID", help="Gymnasium id, Atari id, module:factory or path/to/file.py:factory.")],
    env_arg: Annotated[
        list[str] | None,
        typer.Option("--env-arg", metavar="KEY=VALUE", help="Argument of the environment; may be repeated.", show_default=False),
    ] = None,
    num_envs: Annotated[int, typer.Option("--num-envs", metavar="N", min=1, max=65_536, help="Environments stepped together.")] = 8,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=10, help="Random steps, of all environments together.")] = 4_000,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="environment.FIELD=VALUE", help="Any field of \\[environment]; may be repeated.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Play an environment by chance, alone and in a vector, and say what is wrong with it. Exit status 2 if zpala cannot use it."""
    overrides: dict[str, object] = {"environment.id": name, "environment.num_envs": num_envs}
    overrides.update(config.parse_argument("environment.args", text) for text in env_arg or [])
    overrides.update(config.parse_assignment(text) for text in set_ or [])
    settings = config.load_config(None, overrides, os.environ).environment
    from zpala.tools.environment_check import examine

    examination = examine(settings, steps)
    _print(examination.json() if as_json else examination.text())
    raise typer.Exit(ExitCode.FINISHED if examination.usable else ExitCode.USAGE)


@bench_app.command("env", epilog=EPILOG)
@_with_settings
def bench_env(
    run_file: RunFile = None,
    seconds: Seconds = 15.0,
    as_json: Json = False,
    *,
    overrides: dict[str, object],
) -> None:
    """The environments alone, stepped by chance: as an actor steps them, and the bare simulator as the floor."""
    settings = config.load_config(run_file, overrides, os.environ)
    from zpala.tools.bench_learn import bench_env as measure

    raise typer.Exit(measure(settings, seconds=seconds, as_json=as_json))


@bench_app.command("learn", epilog=EPILOG)
@_with_settings
def bench_learn(
    run_file: RunFile = None,
    seconds: Seconds = 25.0,
    as_json: Json = False,
    *,
    overrides: dict[str, object],
) -> None:
    """The learner alone: the network's passes, the optimiser, a snapshot, and whole updates beside the sum of their parts."""
    settings = config.load_config(run_file, overrides, os.environ)
    from zpala.tools.bench_learn import bench_learn as measure

    raise typer.Exit(measure(settings, seconds=seconds, as_json=as_json))


@bench_app.command("node", epilog=EPILOG)
@_with_settings
def bench_node(
    run_file: RunFile = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="sb3", help="Compare with stable-baselines3's A2C or PPO.", show_default=False)
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", metavar="X", min=1.0, help="Of one measurement (default 20, compared 4).", show_default=False),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option("--warmup", metavar="X", min=0.0, help="Seconds of training before it (default 4, compared 1).", show_default=False),
    ] = None,
    parts_seconds: Annotated[
        float | None,
        typer.Option("--parts-seconds", metavar="X", min=1.0, help="Of measuring the floor's parts (default 10).", show_default=False),
    ] = None,
    pairs: Annotated[
        int | None, typer.Option("--pairs", metavar="N", min=1, help="Compared: A-B-B-A-A-B... (default 3).", show_default=False)
    ] = None,
    sb3_threads: Annotated[
        int | None,
        typer.Option("--sb3-threads", metavar="N", min=1, help="Compared: of its torch (default: what is faster).", show_default=False),
    ] = None,
    sb3_vector: Annotated[
        str | None,
        typer.Option("--sb3-vector", metavar="subproc|dummy", help="Compared: its VecEnv (default: what is faster).", show_default=False),
    ] = None,
    as_json: Json = False,
    *,
    overrides: dict[str, object],
) -> None:
    """One node without peers beside the floor of its parts, and where an update's time goes; or beside stable-baselines3 (extra bench)."""
    from zpala.tools.bench import bench_node as measure

    raise typer.Exit(
        measure(
            run_file,
            overrides,
            os.environ,
            against=against,
            seconds=seconds,
            warmup_s=warmup,
            parts_s=parts_seconds,
            pairs=pairs,
            sb3_threads=sb3_threads,
            sb3_vector=sb3_vector,
            as_json=as_json,
        )
    )


Size = Annotated[int, typer.Option("--size", metavar="N", help="Floats of the vector; the default is a model of 6.8 MB.")]
Curve = Annotated[bool, typer.Option("--curve", help="With a key pair for each side: encrypted and authenticated.")]


@bench_app.command("wire")
def bench_wire(
    size: Size = 1_700_000,
    messages: Annotated[int, typer.Option("--messages", metavar="N", min=1, max=1_000_000, help="How many are sent.")] = 300,
    curve: Curve = False,
    as_json: Json = False,
) -> None:
    """One way of a model between two processes of this machine, beside plain TCP and the checks that it must pass."""
    from zpala.tools.bench_wire import bench_wire as measure

    raise typer.Exit(measure(size=size, messages=messages, curve=curve, as_json=as_json))


@bench_app.command("exchange")
def bench_exchange(
    size: Size = 1_700_000,
    exchanges: Annotated[int, typer.Option("--exchanges", metavar="N", min=1, max=1_000_000, help="How many are measured.")] = 500,
    curve: Curve = False,
    against: Annotated[
        str | None, typer.Option("--against", metavar="gloo", help="Measure this one too, in turn.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """One averaging of two models between two nodes of this machine, stage by stage, beside plain TCP."""
    from zpala.tools.bench_exchange import bench_exchange as measure

    raise typer.Exit(measure(size=size, exchanges=exchanges, curve=curve, against=against, as_json=as_json))


@bench_app.command("cluster", epilog=EPILOG)
@_with_settings
def bench_cluster(
    run_file: RunFile = None,
    nodes: Annotated[str, typer.Option("--nodes", "-n", metavar="N[,N...]", help="Nodes; several numbers: how the speed grows.")] = "4",
    slow: Annotated[float, typer.Option("--slow", metavar="X", min=1.0, help="One node's environments are X times slower.")] = 1.0,
    every_update: Annotated[
        bool, typer.Option("--exchange-every-update", help="Exchanges are not held back by gossip's share of the time.")
    ] = False,
    against: Annotated[
        Rival | None,
        typer.Option("--against", help="The same by all-reduce, or by gossip over shared memory.", show_default=False),
    ] = None,
    pairs: Annotated[int, typer.Option("--pairs", metavar="N", min=1, help="Rounds, forwards and backwards in turn.")] = 1,
    seconds: Seconds = 8.0,
    warmup: Warmup = 2.0,
    as_json: Json = False,
    *,
    overrides: dict[str, object],
) -> None:
    """Several nodes on this machine beside as many times one alone, the same without gossip, or a rival."""
    from zpala.tools.bench_cluster import bench_cluster as compare

    raise typer.Exit(
        compare(
            run_file,
            overrides,
            os.environ,
            nodes=nodes,
            slow=slow,
            every_update=every_update,
            against=None if against is None else against.value,
            pairs=pairs,
            seconds=seconds,
            warmup_s=warmup,
            as_json=as_json,
        )
    )


@config_app.command("show", epilog=EPILOG)
@_with_settings
def config_show(run_file: RunFile = None, *, overrides: dict[str, object]) -> None:
    """Print the resolved configuration as a run file."""
    _print(config.load_config(run_file, overrides, os.environ).to_toml().rstrip())


@config_app.command("presets")
def config_presets() -> None:
    """The names of the shipped presets."""
    _print("\n".join(config.preset_names()))


@keys_app.command("new")
def keys_new(
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Folder of the secret key's file (default ~/.config/zpala).", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The file is NAME.key (default: this machine's name).", show_default=False),
    ] = None,
) -> None:
    """Make a key pair: the secret key goes into a file that only you can read, the public key is printed for hosts.txt."""
    from zpala.tools.keys import make

    public, explanation = make(directory, name)
    _print(public)
    print(explanation, file=sys.stderr)


@keys_app.command("show")
def keys_show(
    place: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Secret key file, or a folder of them; without it ~/.config/zpala.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the public key of every secret key file."""
    from zpala.tools.keys import show

    _print(show(place, as_json=as_json))


@app.command()
def version() -> None:
    """Print the version and exit."""
    _print_version()


def main() -> NoReturn:
    """Entry point of ``zpala`` and ``python -m zpala``: errors that a person can mend are one paragraph on stderr."""
    from zpala.gossip.hosts import HostsError
    from zpala.gossip.topology import TopologyError
    from zpala.node.errors import NodeError
    from zpala.run_directory import RunDirectoryError

    try:
        app()
    except (config.ConfigError, HostsError, TopologyError, RunDirectoryError) as error:
        print(f"zpala: {error}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    except NodeError as error:
        print(f"zpala: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(ExitCode.FINISHED)


def _print_version() -> NoReturn:
    _print(f"zpala {__version__}")
    raise typer.Exit(ExitCode.FINISHED)


def _print(text: str) -> None:
    print(text)

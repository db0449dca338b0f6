"""The run file: precedence, types, the text of errors, and presets."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from zpala.config import (
    ALGORITHM_NAMES,
    OPTION_FIELDS,
    SECTIONS,
    Config,
    ConfigError,
    GossipConfig,
    fields,
    load_config,
    parse_argument,
    parse_assignment,
    preset_names,
)
from zpala.config_source import key_lines, parse_value, toml_value
from zpala.gossip.settings import GossipSettings
from zpala.rl import build_network, environment_spec

PRESETS = Path(__file__).parent.parent / "zpala" / "presets"


def error_of(path: Path | None = None, overrides: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides or {}, environ or {})
    text = str(caught.value)
    assert "\n" not in text, "an error is one paragraph"
    return text


def write(directory: Path, text: str) -> Path:
    path = directory / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------------------ precedence


def test_each_source_wins_over_the_ones_after_it(tmp_path: Path) -> None:
    run_file = write(tmp_path, 'preset = "cartpole"\n[optimizer]\nlr = 0.2\n[environment]\nnum_envs = 3\n')
    default = Config().optimizer.lr
    assert load_config(None, {}, {}).optimizer.lr == default
    from_preset = load_config(None, {"preset": "paac"}, {})
    assert from_preset.optimizer.lr == 0.0224
    from_file = load_config(run_file, {}, {})
    assert (from_file.optimizer.lr, from_file.environment.num_envs, from_file.network.name) == (0.2, 3, "mlp")
    from_variable = load_config(run_file, {}, {"ZPALA_LR": "0.3"})
    assert (from_variable.optimizer.lr, from_variable.environment.num_envs) == (0.3, 3)
    from_option = load_config(run_file, {"optimizer.lr": 0.4}, {"ZPALA_LR": "0.3", "ZPALA_NUM_ENVS": "5"})
    assert (from_option.optimizer.lr, from_option.environment.num_envs) == (0.4, 5)


def test_the_preset_itself_follows_the_precedence(tmp_path: Path) -> None:
    run_file = write(tmp_path, 'preset = "cartpole"\n')
    assert load_config(run_file, {}, {"ZPALA_PRESET": "gala"}).optimizer.lr == 0.0014
    assert load_config(run_file, {"preset": "paac"}, {"ZPALA_PRESET": "gala"}).optimizer.lr == 0.0224


def test_arguments_of_the_environment_are_merged(tmp_path: Path) -> None:
    run_file = write(tmp_path, '[environment]\nargs = { size = 3, name = "a" }\n')
    config = load_config(run_file, {"environment.args.size": 8, "environment.args.deep": [1, 2]}, {})
    assert config.environment.args == {"size": 8, "name": "a", "deep": [1, 2]}


def test_a_variable_for_a_text_is_never_read_as_a_number() -> None:
    assert load_config(None, {}, {"ZPALA_NAME": "5"}).node.name == "5"


def test_every_field_has_a_variable_of_its_own() -> None:
    environ = {"ZPALA_GOSSIP_MAX_STALENESS": "7", "ZPALA_NETWORK_HIDDEN_SIZES": "[8, 9]", "ZPALA_GOSSIP": "false", "ZPALA_WAIT_FOR": "2"}
    config = load_config(None, {}, environ)
    assert config.gossip.max_staleness == 7
    assert config.network.hidden_sizes == (8, 9)
    assert config.gossip.enabled is False
    assert config.gossip.wait_for == 2


def test_variables_that_are_not_settings_are_left_alone() -> None:
    environ = {"ZPALA_LOG_FORMAT": "json", "ZPALA_NODE_SERVICE_HOST": "10.0.0.1", "ZPALA_NODE_PORT_5670_TCP": "x", "HOME": "/"}
    assert load_config(None, {}, environ) == Config()


@pytest.mark.parametrize("text", ["gossip.max_staleness=32", " gossip.max_staleness = 32"])
def test_set_takes_a_dotted_name_and_a_toml_value(text: str) -> None:
    assert parse_assignment(text) == ("gossip.max_staleness", 32)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ('"12"', "12"),
        ("[1, 2]", [1, 2]),
        ("ring", "ring"),
        ("none", None),
        ("a b", "a b"),
    ],
)
def test_values_are_toml_or_text(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize("field", ["network.core", "optimizer.anneal"])
def test_none_is_a_choice_where_the_field_has_it(field: str) -> None:
    assert parse_assignment(f"{field}=none") == (field, "none")
    assert load_config(None, dict([parse_assignment(f"{field}=none")]), {}).to_toml().count('= "none"') >= 1
    assert load_config(None, {}, {f"ZPALA_{field.upper().replace('.', '_')}": "none"}).to_toml().count('= "none"') >= 1


def test_none_is_no_value_elsewhere() -> None:
    assert parse_assignment("run.target_return=none") == ("run.target_return", None)


def test_an_environment_of_a_file_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {"environment.id": "envs/mine.py:make"}, {})
    assert config.environment.id == f"{tmp_path}/envs/mine.py:make"
    assert config.environment.label == "mine.py:make"
    for name in ("ALE/Pong-v5", "module:make", "CartPole-v1"):
        assert load_config(None, {"environment.id": name}, {}).environment.id == name


def test_environment_arguments_are_named() -> None:
    assert parse_argument("environment.args", "size=8") == ("environment.args.size", 8)
    with pytest.raises(ConfigError, match="--env-arg 'size'"):
        parse_argument("environment.args", "size")


def test_settings_of_an_algorithm_of_ones_own_are_named() -> None:
    assert parse_argument("algorithm.args", "rate=0.5") == ("algorithm.args.rate", 0.5)
    with pytest.raises(ConfigError, match=r"--algorithm-arg 'rate'.*--algorithm-arg size=8"):
        parse_argument("algorithm.args", "rate")


def test_settings_of_an_algorithm_of_ones_own_are_merged(tmp_path: Path) -> None:
    run_file = write(tmp_path, '[algorithm]\nname = "mine:Mine"\n[algorithm.args]\nrate = 0.5\nkind = "a"\n')
    config = load_config(run_file, {"algorithm.args.rate": 0.25, "algorithm.args.deep": [1, 2]}, {})
    assert config.algorithm.args == {"rate": 0.25, "kind": "a", "deep": [1, 2]}
    again = write(tmp_path, config.to_toml())
    assert load_config(again, {}, {}) == config


def test_a_file_of_an_algorithm_is_absolute_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {"algorithm.name": "sub/../mine.py:Mine"}, {})
    assert config.algorithm.name == f"{tmp_path}/mine.py:Mine"
    assert config.algorithm.label == "mine.py:Mine"
    monkeypatch.chdir("/")
    assert load_config(write(tmp_path, config.to_toml()), {}, {}).algorithm.name == config.algorithm.name
    assert load_config(None, {"algorithm.name": "package.module:Mine"}, {}).algorithm.label == "package.module:Mine"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pp", '(did you mean "ppo"?)'),
        ("quixotic", f"expected {', '.join(ALGORITHM_NAMES)}, path"),
        ("mine.py", '(did you mean "mine.py:Class"?)'),
        ("mine.py:", "path/to/mine.py:Class or module:Class"),
        (":Mine", "path/to/mine.py:Class or module:Class"),
    ],
)
def test_a_name_that_is_no_algorithm_offers_what_there_is(name: str, words: str) -> None:
    text = error_of(overrides={"algorithm.name": name})
    assert text.startswith(f"--algorithm (or --set algorithm.name): algorithm.name = {name!r} is not allowed: ")
    assert words in text


# --------------------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_field_names_file_line_and_the_closest_field(tmp_path: Path) -> None:
    run_file = write(tmp_path, "[run]\nseed = 3\n\n[gossip]\n# a comment\nmax_stalness = 3\n")
    text = error_of(run_file)
    assert text.startswith(f"{run_file}, line 6: ")
    assert "[gossip]" in text
    assert "max_staleness" in text


def test_an_unknown_section_offers_the_closest(tmp_path: Path) -> None:
    text = error_of(write(tmp_path, "[gosip]\nmax_staleness = 3\n"))
    assert "line 2" in text
    assert "gossip" in text


def test_a_field_outside_its_section_is_shown_its_section(tmp_path: Path) -> None:
    assert "Did you mean gossip.max_staleness?" in error_of(write(tmp_path, "max_staleness = 3\n"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('max_staleness = "3"', ["gossip.max_staleness", "'3'", "whole number"]),
        ("max_staleness = 0", ["gossip.max_staleness", "0", "greater than or equal to 1"]),
        ("max_lead = -1", ["gossip.max_lead", "-1", "greater than or equal to 0"]),
        ("max_staleness = true", ["gossip.max_staleness", "True", "whole number"]),
        ("max_staleness = 1.5", ["gossip.max_staleness", "1.5", "whole number"]),
        ('initial = "adapt"', ["gossip.initial", '"adopt" or "own"', 'did you mean "adopt"?']),
        ('wait_for = "most"', ["gossip.wait_for", '"all"']),
        ('enabled = "yes"', ["gossip.enabled", "true or false"]),
        ("mixing_weight = nan", ["gossip.mixing_weight", "nan"]),
        ("drain_distance = inf", ["gossip.drain_distance", "inf"]),
    ],
)
def test_a_wrong_value_names_line_field_value_and_what_is_allowed(tmp_path: Path, line: str, words: list[str]) -> None:
    text = error_of(write(tmp_path, f"[gossip]\n\n{line}\n"))
    assert "run.toml, line 3" in text
    for word in words:
        assert word in text


def test_a_device_that_does_not_exist_is_told_which_do() -> None:
    text = error_of(overrides={"node.device": "gpu"})
    assert text.startswith("--device")
    assert '"cuda"' in text


def test_errors_name_the_option_or_the_variable() -> None:
    assert error_of(overrides={"optimizer.lr": "fast"}).startswith("--lr ")
    assert error_of(overrides={"gossip.keep_s": "long"}).startswith("--set gossip.keep_s")
    assert error_of(environ={"ZPALA_LR": "fast"}).startswith("environment variable ZPALA_LR")
    assert "ZPALA_GOSSIP_MAX_STALENESS" in error_of(environ={"ZPALA_GOSSIP_MAX_STALENES": "3"})


def test_timers_that_contradict_each_other_name_their_place_and_the_reason(tmp_path: Path) -> None:
    text = error_of(write(tmp_path, "[gossip]\nsuspect_s = 9.0\n"))
    assert "line 2" in text
    assert "suspect_s < dead_s" in text


def test_more_actors_than_environments_is_refused() -> None:
    text = error_of(overrides={"node.actors": 9, "node.groups": 2, "environment.num_envs": 16})
    assert "18" in text
    assert "num_envs = 16" in text


def test_a_preset_that_does_not_exist(tmp_path: Path) -> None:
    assert "Did you mean cartpole or " in error_of(write(tmp_path, 'preset = "cartpol"\n'))
    assert error_of(overrides={"preset": "x"}).startswith("--preset")


def test_a_file_that_is_missing_broken_or_binary(tmp_path: Path) -> None:
    assert "cannot read" in error_of(tmp_path / "absent.toml")
    assert "not valid TOML" in error_of(write(tmp_path, "[run]\nseed = = 3\n"))
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in error_of(tmp_path / "run.toml")


def test_a_section_that_is_no_table(tmp_path: Path) -> None:
    assert "Write [gossip]" in error_of(write(tmp_path, "gossip = 3\n"))


def test_lines_of_keys_in_all_their_spellings() -> None:
    text = 'preset = "a"\n[run] # c\nseed = 1\n[ gossip ]\n\n"topology" = "x"\nnode.device = 3\n'
    lines = key_lines(text)
    assert lines == {"preset": 1, "run": 2, "run.seed": 3, "gossip": 4, "gossip.topology": 6, "gossip.node.device": 7}


# ------------------------------------------------------------------------------------------------------------ writing, presets


@pytest.mark.parametrize("preset", [None, *preset_names()])
def test_what_is_written_loads_to_the_same_configuration(tmp_path: Path, preset: str | None) -> None:
    overrides: dict[str, object] = {
        "environment.args.path": 'a "b"\\\n\u00e4',
        "environment.args.n": [1, [2.5, True]],
        "environment.args.d": {"x y": 1},
    }
    config = load_config(None, {**overrides, **({"preset": preset} if preset else {}), "run.directory": "runs/x"}, {})
    path = write(tmp_path, config.to_toml())
    assert load_config(path, {}, {}) == config


@pytest.mark.parametrize("value", [True, 1, 1e-5, 1e300, "a\tb\x7f", [1, "b"], {"k": [1]}])
def test_values_survive_toml(value: object) -> None:
    assert tomllib.loads(f"v = {toml_value(value)}")["v"] == value


@pytest.mark.parametrize("name", preset_names())
def test_every_value_of_a_preset_has_its_source_beside_it(name: str) -> None:
    for line in (PRESETS / f"{name}.toml").read_text().splitlines():
        if "=" in line and not line.startswith("#") and line != 'name = "a2c"':
            assert re.search(r"=.*\S\s+# \S", line), line


def test_presets_set_no_field_that_a_run_file_could_not_unset() -> None:
    optional = {name for name, field in fields() if field.default is None}
    for name in preset_names():
        tree = tomllib.loads((PRESETS / f"{name}.toml").read_text())
        assert not {f"{section}.{field}" for section, table in tree.items() for field in table} & optional


def test_gala_and_paac_differ_where_their_optimisers_do() -> None:
    gala, paac = (load_config(None, {"preset": name}, {}).optimizer for name in ("gala", "paac"))
    assert (gala.epsilon_inside_root, paac.epsilon_inside_root) == (False, True)
    assert (gala.initial_square_average, gala.epsilon) == (0.0, 1e-5)
    assert paac.initial_square_average == pytest.approx(1 / 5**2)
    assert paac.epsilon == pytest.approx(0.1 / 5**2)


def test_paac_has_the_network_of_its_code() -> None:
    """train.py: --arch is NIPS unless told otherwise; networks.py: 16 filters 8 x 8, 32 filters 4 x 4, 256 units; both heads on them."""
    paac = load_config(None, {"preset": "paac"}, {})
    n = paac.network
    spec = environment_spec(paac.environment.id, {}, paac.environment.atari_settings())
    network = build_network(spec, n.name, n.hidden_sizes, n.activation, False, 1, separate_critic=n.separate_critic)
    assert network.describe() == "nips_cnn 4-16-32-2592-256 relu, policy 6, value 1"


def test_gossip_settings_have_the_same_fields_and_defaults() -> None:
    assert {field.name for field in dataclasses.fields(GossipSettings)} == set(GossipConfig.model_fields)
    assert GossipConfig().settings() == GossipSettings()


def test_every_field_has_one_line_of_description() -> None:
    for name, field in fields():
        assert field.description, name
        assert field.description.endswith("."), name


def test_every_field_is_read_somewhere() -> None:
    package = PRESETS.parent
    sources = "\n".join(path.read_text() for path in package.rglob("*.py") if path.name not in ("config.py", "settings.py"))
    for name, _ in fields():
        section, _, field = name.rpartition(".")
        if section in ("gossip", "network", "environment") or not section:
            continue  # handed over as a whole: GossipConfig.settings, Config.network_values, EnvironmentConfig.atari_settings
        assert re.search(rf"\.{field}\b", sources), f"{name} is a setting that nothing reads"


def test_options_name_existing_fields() -> None:
    known = {name for name, _ in fields()}
    assert set(OPTION_FIELDS.values()) <= known
    assert set(SECTIONS) == {name.partition(".")[0] for name in known} - {"preset"}


def test_what_an_algorithm_cannot_do_is_refused() -> None:
    reuse = {"algorithm.reuse_activations": True}
    with pytest.raises(ConfigError, match=r'reuse_activations = true is for a2c, vtrace, nstep_q: name = "ppo".*"auto"'):
        load_config(None, {"algorithm.name": "ppo", **reuse}, {})
    with pytest.raises(ConfigError, match=r"algorithm.reuse_activations = true needs vtrace.lag = 0, not 2"):
        load_config(None, {"algorithm.name": "vtrace", "vtrace.lag": 2, **reuse}, {})
    assert load_config(None, {"algorithm.name": "a2c", **reuse}, {}).algorithm_values(on_cpu=False)["reuse_activations"] is True


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"node.device": "cpu", "node.cuda_graphs": True}, ("cuda_graphs = true", 'device = "cpu"', 'Leave cuda_graphs at "auto"')),
        ({"node.cuda_graphs": True, "algorithm.reuse_activations": True}, ("node.cuda_graphs = true", "Set one of them to false")),
        ({"node.device": "cpu", "network.precision": "tf32"}, ('network.precision = "tf32"', 'Use "float32" or "bf16"')),
        ({"network.precision": "bf61"}, ("network.precision = 'bf61'", '"float32" or "tf32" or "bf16"', 'did you mean "bf16"?')),
        ({"node.cuda_graphs": "never"}, ("node.cuda_graphs = 'never'", '"auto"', "true or false")),
    ],
)
def test_what_a_device_cannot_do_is_refused(settings: dict[str, object], words: tuple[str, ...]) -> None:
    text = error_of(overrides=settings)
    assert "--set n" in text
    for word in words:
        assert word in text


def test_automatic_settings_depend_on_the_algorithm() -> None:
    normalized = {
        name: load_config(None, {"algorithm.name": name}, {}).algorithm_values()["normalize_advantage"] for name in ("a2c", "ppo")
    }
    assert normalized == {"a2c": False, "ppo": True}
    assert "normalize_advantage" not in load_config(None, {"algorithm.name": "mine.py:Mine"}, {}).algorithm_values()  # its own default
    reused = [load_config(None, {}, {}).algorithm_values(on_cpu=on_cpu)["reuse_activations"] for on_cpu in (True, False)]
    assert reused == [True, False]
    assert load_config(None, {"algorithm.name": "vtrace", "vtrace.lag": 1}, {}).algorithm_values()["reuse_activations"] is False
    assert "reuse_activations" not in load_config(None, {"algorithm.name": "mine.py:Mine"}, {}).algorithm_values()
    assert "epochs" not in load_config(None, {}, {}).algorithm_values()

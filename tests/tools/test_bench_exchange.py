"""``zpala bench exchange`` and ``wire``: real processes and tiny vectors; results and sums are judged, never a speed."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed
from typer.testing import CliRunner

from zpala import cli
from zpala.exit_codes import ExitCode
from zpala.gossip.mixing import checksum
from zpala.tools import bench_wire
from zpala.tools.bench_exchange import Kind, longer_sides, pairs, quantile
from zpala.tools.bench_peers import Block, Peers
from zpala.tools.bench_stamps import Stamps, stages
from zpala.tools.bench_tcp import mean_into
from zpala.tools.bench_vectors import start_vector
from zpala.tools.child import ChildFailed

SIZE = 70_000  # 280 kB: above the size from which both sides send at once, and above pyzmq's copy_threshold
GLOO = {"GLOO_SOCKET_IFNAME": "lo"}
MODULES = ["zpala.tools.bench_gossip", "zpala.tools.bench_tcp"]


def sum_of_mean(size: int) -> float:
    """Of the elements of the mean of both starts, in float64."""
    return float((start_vector(0, size).astype(np.float64) + start_vector(1, size).astype(np.float64)).sum() / 2)


def check(peers: Peers, size: int) -> None:
    for said in peers.result():
        assert said["finite"]
        assert said["distance"] < 1e-6
        assert said["sum"] == pytest.approx(sum_of_mean(size), rel=1e-6)


@pytest.mark.parametrize("module", MODULES)
def test_both_sides_end_with_the_mean(module: str) -> None:
    with Peers("a side", module, {"size": SIZE}) as peers:
        before = [said["distance"] for said in peers.result()]
        assert min(before) > 0.1
        block = peers.block(3)
        assert [len(block.starts[0]), len(block.ends[1])] == [3, 3]
        assert all(seconds > 0 for seconds in block.seconds)
        assert all(cpu_s > 0 for cpu_s in block.cpu_s)
        check(peers, SIZE)
        peers.block(2)
        check(peers, SIZE)


def test_small_vectors_take_the_other_way_through_the_exchange() -> None:
    with Peers("a side", MODULES[0], {"size": 1600}) as peers:
        assert len(peers.block(4).rows[0]) == 4
        check(peers, 1600)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this build of torch has no gloo")
@pytest.mark.parametrize("order", [{}, {"both_ways": True}])
def test_gloo_ends_with_the_mean(tmp_path: Path, order: dict[str, bool]) -> None:
    with Peers("a side", "zpala.tools.bench_gloo", {"size": SIZE, "store": str(tmp_path / "store")}, GLOO) as peers:
        peers.block(3, **order)
        check(peers, SIZE)


def test_the_moments_of_an_exchange_are_in_order() -> None:
    with Peers("a side", MODULES[0], {"size": SIZE}) as peers:
        block = peers.block(4)
    for asking, answering in zip(*block.rows, strict=True):
        for row in (asking, answering):
            order = ["frozen_from", "frozen_to", "arrived", "judged_to", "queued", "mailed", "applied", "published"]
            moments = [row[column] for column in order]
            assert moments == sorted(moments)
        assert asking["frozen_to"] <= answering["frozen_from"] <= asking["accepted"]
        assert asking["frozen_to"] <= answering["arrived"]
    found = stages(*block.rows)
    assert {len(values) for values in found.values()} == {4}


def test_a_snapshot_arrives_whole(tmp_path: Path) -> None:
    with Peers("an end", "zpala.tools.bench_wire", {"size": SIZE}) as peers:
        block = peers.block(3)
        sent, received = peers.result()
        assert sent["checksum"] == received["checksum"] == checksum(start_vector(0, SIZE))
        assert all(seconds > 0 for seconds in bench_wire.one_way(block))


@pytest.mark.parametrize("command", [["exchange", "--exchanges", "4"], ["wire", "--messages", "4"]])
@pytest.mark.parametrize("curve", [[], ["--curve"]])
def test_the_commands_say_one_object_at_the_end(command: list[str], curve: list[str]) -> None:
    result = CliRunner().invoke(cli.app, ["bench", *command, "--size", "70007", "--json", *curve])
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout.splitlines()[-1])
    unit = "exchange" if command[0] == "exchange" else "message"
    measured, floor = document[f"seconds_per_{unit}"], document[f"floor_seconds_per_{unit}"]
    assert document["floor_ratio"] == pytest.approx(floor / measured)
    assert document["settings"]["size"] == 70_000
    assert document["settings"]["curve"] is bool(curve)
    assert document["ratios"]["tcp"]["median"] > 0
    assert measured > 0 < floor
    assert document["bottleneck"]


def test_the_text_fits_a_screen() -> None:
    result = CliRunner().invoke(cli.app, ["bench", "exchange", "--size", "4096", "--exchanges", "3", "--against", "gloo"])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) <= 25
    assert any(line.startswith("to gloo") for line in lines)


@pytest.mark.parametrize("arguments", [["exchange", "--size", "15"], ["wire", "--size", str(2**30)], ["exchange", "--against", "mpi"]])
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["zpala", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ExitCode.USAGE
    said = capsys.readouterr().err
    assert arguments[1] in said
    assert arguments[2] in said


def test_a_side_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(ChildFailed, match="unexpected keyword argument 'colour'"), Peers("a side", MODULES[1], {"size": 16, "colour": 1}):
        pass


def test_an_exchange_lasts_from_the_later_start_to_the_later_end() -> None:
    block = Block(starts=[[1.0, 5.0], [1.5, 4.0]], ends=[[3.0, 9.0], [2.0, 9.5]], cpu_s=[4.0, 2.0])
    assert block.seconds == [1.5, 4.5]
    assert block.cpu_per_repetition_s == 1.5


def test_pairs_are_of_neighbouring_blocks() -> None:
    def kind(*medians: float) -> Kind:
        return Kind([Block(starts=[[0.0], [0.0]], ends=[[median], [median]], cpu_s=[1.0, 1.0]) for median in medians])

    made = pairs({"zpala": kind(2.0, 9.0), "tcp": kind(1.0, 3.0)}, "tcp")
    assert [(pair.order, pair.a, pair.b, pair.ratio) for pair in made] == [("AB", 2.0, 1.0, 2.0), ("BA", 9.0, 3.0, 3.0)]


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, percent) for percent in (50, 90, 99)] == [50.0, 90.0, 99.0]
    assert quantile([3.0], 99) == 3.0


def test_stages_of_both_sides_are_shown_once() -> None:
    table = {"a @ asking side": 1.0, "a @ answering side": 2.0, "b": 3.0, "frozen and described @ asking side": 4.0}
    assert longer_sides(table) == {"a": 2.0, "b": 3.0, "frozen and described, asking side": 4.0}


def test_only_the_first_of_repeated_moments_counts_and_what_was_not_agreed_is_left_out() -> None:
    stamps = Stamps()
    stamps.note(7, frozen_from=1.0, judged_to=4.0, agreed=3.0)
    stamps.note(7, frozen_from=2.0)
    stamps.note(8, frozen_from=5.0)
    (row,) = stamps.take([(6.0, 7.0, 8.0)])
    assert row == {"frozen_from": 1.0, "judged_to": 4.0, "agreed": 3.0, "queued": 4.0, "mailed": 6.0, "applied": 7.0, "published": 8.0}
    assert stamps.take([]) == []


def test_the_mean_is_that_of_numpy() -> None:
    mine, theirs = start_vector(0, 300_000), start_vector(1, 300_000)
    expected = (mine.astype(np.float64) + theirs) / 2
    mean_into(mine, theirs)
    assert np.abs(mine - expected).max() < 1e-6


def test_a_pass_is_timed_for_every_name() -> None:
    alone = bench_wire.passes_alone(4096, repetitions=3)
    assert set(alone) == {"memcpy", "checksum", "norm"}
    assert statistics.fmean(alone.values()) > 0

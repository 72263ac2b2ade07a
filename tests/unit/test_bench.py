"""The benchmark's pure parts: arithmetic, rounds, reading docker's stream, and what the reports say."""

import io
import itertools
import struct
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report, stats
from bench.contender import Unavailable
from bench.dockerd import small_image
from bench.figures.table import Budget, Table, fill, rounds
from bench.machine import descendants
from bench.main import options
from bench.peers.docker import read_multiplexed
from bench.plot import plotted

VALUES = st.lists(st.floats(0.001, 1e6), min_size=1)


@given(VALUES, st.floats(0, 1))
def test_a_percentile_lies_within_the_values(values: list[float], fraction: float) -> None:
    ordered = sorted(values)
    found = stats.percentile(ordered, fraction)
    assert ordered[0] <= found <= ordered[-1] or found == pytest.approx(ordered[0])


def test_percentiles_of_known_values() -> None:
    ordered = [10.0, 20.0, 30.0, 40.0]
    assert [stats.percentile(ordered, f) for f in (0, 0.5, 1)] == [10, 25, 40]


@pytest.mark.parametrize(("values", "fraction"), [([], 0.5), ([1.0], 1.1), ([1.0], -0.1)])
def test_a_percentile_of_nothing_is_refused(values: list[float], fraction: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        stats.percentile(values, fraction)


def test_a_spread_leaves_out_what_failed() -> None:
    assert stats.spread([None, 3.0, None, 1.0, 2.0]) == stats.Spread(1.2, 2.0, 2.8, 3)
    assert stats.spread([None]) is None


def test_ratios_are_formed_within_a_round() -> None:
    # The machine slowed down tenfold in the second round: the ratios do not show it.
    assert stats.ratios([2.0, 20.0, None, 5.0], [1.0, 10.0, 1.0, None]) == [2.0, 2.0]


def test_a_base_that_is_not_positive_gives_no_ratio() -> None:
    assert stats.ratios([1.0, 1.0, 4.0], [0.0, -2.0, 2.0]) == [2.0]


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (7.34, "7.3"), (153.4, "153"), (-0.5, "-0.50")])
def test_numbers_have_the_digits_they_are_worth(value: float, text: str) -> None:
    assert stats.show(value) == text


def test_each_round_asks_all_in_an_order_of_its_own() -> None:
    names = ["a", "b", "c", "d"]
    orders = list(rounds(names, Budget(0, 12, 12)))
    assert all(sorted(order) == names for order in orders)
    followers = {pair for order in orders for pair in itertools.pairwise(order)}
    assert len(followers) > len(names) * 2


def test_a_budget_that_is_used_up_ends_after_the_least_rounds() -> None:
    assert len(list(rounds(["a"], Budget(-1, 3, 9)))) == 3


def test_a_contender_that_fails_is_asked_no_more_and_rounds_still_match() -> None:
    table = Table("t", "T", "ms")
    asked = []

    def measure(name: str) -> list[list[float]]:
        asked.append(name)
        if name == "weak" and asked.count("weak") == 2:
            raise Unavailable("it fell over")
        return [[float(len(asked))]]

    fill([table], ["sandboxd", "weak"], Budget(0, 4, 4), measure)
    assert table.lost == {"weak": "it fell over"}
    assert asked.count("weak") == 2
    assert table.samples["weak"][1:] == [None, None, None]
    assert len(table.samples["weak"]) == len(table.samples["sandboxd"]) == 4
    weak = table.ratio("weak")
    assert weak is not None
    assert weak.count == 1


def test_descendants_are_found_at_any_depth() -> None:
    assert descendants(2, {1: 0, 2: 1, 3: 2, 4: 3, 5: 1, 6: 4}) == {2, 3, 4, 6}


def test_dockers_stream_is_counted_without_its_headers() -> None:
    pieces = [b"x" * 5, b"y" * 70_000, b""]
    stream = io.BytesIO(b"".join(struct.pack(">B3xI", 1, len(piece)) + piece for piece in pieces))
    assert read_multiplexed(stream)[0] == 70_005


def test_a_broken_docker_stream_is_no_figure() -> None:
    with pytest.raises(Unavailable, match="broke off"):
        read_multiplexed(io.BytesIO(struct.pack(">B3xI", 1, 10) + b"short"))


def test_dockers_image_holds_no_usr_but_what_leads_to_it(tmp_path: Path) -> None:
    for name in ("usr/bin", "etc", "proc", "var"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "usr/bin/true").touch()
    (tmp_path / "etc/passwd").write_text("root\n")
    (tmp_path / "bin").symlink_to("usr/bin")
    with tarfile.open(fileobj=io.BytesIO(small_image(tmp_path))) as archive:
        assert archive.getnames() == ["bin", "etc", "etc/passwd", "proc", "usr"]


@pytest.fixture
def findings() -> report.Findings:
    table = Table("exec", "exec", "ms", 1000)
    table.samples = {"sandboxd": [0.002, 0.004], "crun": [0.004, 0.008], "gone": [None, None]}
    table.lost = {"gone": "no such program"}
    machine = {"cpus": 2, "cpu": "Z80", "memory_gib": 0.1, "kernel": "6.1", "os": "Debian", "load": 0.0}
    return report.Findings(machine, absent={"podman": "not installed"}, tables=[table])


def test_markdown_shows_the_middle_and_the_ratio(findings: report.Findings) -> None:
    assert report.markdown(findings).splitlines()[2:4] == ["| **sandboxd** | 3.0 |", "| crun | 6.0 (2.0x) |"]


def test_peers_that_did_not_run_are_named_with_their_reason(findings: report.Findings) -> None:
    text = report.how_to_read(findings)
    assert "podman did not run: not installed" in text
    assert "gone dropped out: no such program (exec)" in text


def test_the_plot_leaves_out_who_has_no_samples(findings: report.Findings) -> None:
    shown = plotted(findings.tables[0])
    assert [bar["name"] for bar in shown["bars"]] == ["sandboxd", "crun"]
    assert shown["bars"][1]["p50"] == pytest.approx(6.0)


def test_the_command_line_knows_figures_and_peers() -> None:
    chosen = options(["--quick", "--only", "exec", "--peers", "sandboxd", "docker-api"])
    assert (chosen.quick, chosen.only, chosen.peers) == (True, ["exec"], ["sandboxd", "docker-api"])
    with pytest.raises(SystemExit):
        options(["--peers", "chroot"])

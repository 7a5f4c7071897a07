"""Figures show the stored numbers, in a stable order, in files that are equal byte for byte."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from simbandit.guarantees import MissingData
from simbandit.guarantees.statistics import mean_interval
from simbandit.plotting import PALETTE, curves, frontier, label, lines, panels, regret_panel, save, style
from tests.cases import power_law, rows


def frame():
    parts = [power_law(20, 0, "cpu", e).assign(algorithm=name) for name, e in (("dpo", -0.3), ("gshf", -1.0))]
    falling = pd.concat(parts)
    rising = falling.assign(metric="cumulative_reward_regret", value=falling["value"] * (1 + falling["round"]))
    return pd.concat([falling, rising])


def test_a_curve_is_the_mean_with_its_band_over_queries():
    _, axes = panels()
    drawn = curves(axes[0, 0], frame(), "suboptimality", "algorithm", loglog=True)
    ax = axes[0, 0]
    table = power_law(20, 0, "cpu", -1.0).pivot(index="replicate", columns="queries", values="value")
    table = table.loc[:, table.columns > 0]
    x, y = np.asarray(ax.lines[1].get_xdata()), np.asarray(ax.lines[1].get_ydata())
    np.testing.assert_array_equal(x, table.columns)
    np.testing.assert_allclose(y, table.to_numpy().mean(0), rtol=1e-14)
    np.testing.assert_array_equal(drawn["gshf"].low, mean_interval(table.to_numpy()).low)
    band = ax.collections[1].get_paths()[0].get_extents()
    assert band.y0 < y.min() < y.max() < band.y1
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "lower is better" in ax.get_ylabel()
    assert "comparisons" in ax.get_xlabel()


def test_the_legends_order_and_colours_are_those_given():
    _, axes = panels(columns=2)
    curves(axes[0, 0], frame(), "suboptimality", "algorithm", order=("gshf", "dpo"), names={"gshf": "GSHF"})
    legend = axes[0, 0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["GSHF", "dpo"]
    assert [line.get_color() for line in axes[0, 0].lines] == list(PALETTE[:2])
    curves(axes[0, 1], frame(), "suboptimality", "algorithm", looks=lines(("dpo", "gshf")), order=("gshf",))
    assert to_hex(axes[0, 1].lines[0].get_color()).upper() == PALETTE[1]


def test_a_curve_along_a_label_uses_the_last_round():
    parts = [power_law(9, n, "cpu", -1.0).assign(algorithm="a", n=n) for n in (16, 2, 4)]
    _, axes = panels()
    curves(axes[0, 0], pd.concat(parts), "suboptimality", "algorithm", x="n")
    line = axes[0, 0].lines[0]
    assert np.asarray(line.get_xdata()).tolist() == [2, 4, 16]
    last = [p[p["round"] == 32]["value"].mean() for p in sorted(parts, key=lambda p: p["n"].iloc[0])]
    np.testing.assert_allclose(np.asarray(line.get_ydata()), last, rtol=1e-14)


def test_rows_of_several_cells_are_not_averaged_and_missing_ones_are_an_error():
    _, axes = panels()
    twice = pd.concat([frame().assign(n=1), frame().assign(n=2)])
    with pytest.raises(ValueError, match="narrow the filter by n"):
        curves(axes[0, 0], twice, "suboptimality", "algorithm")
    curves(axes[0, 0], twice, "suboptimality", "algorithm", where={"n": 2})
    with pytest.raises(MissingData, match="metric='win_rate'"):
        curves(axes[0, 0], frame(), "win_rate", "algorithm")


def test_the_frontier_pairs_the_two_metrics_along_the_path():
    kl = np.array([[0.0, 1.0, 3.0], [0.0, 2.0, 5.0]])
    reward = np.array([[0.5, 0.7, 0.9], [0.5, 0.6, 0.8]])
    table = pd.concat([rows(kl, "kl_to_ref", (0, 1, 2)), rows(reward, "win_rate_vs_ref", (0, 1, 2))])
    _, axes = panels()
    frontier(axes[0, 0], table.assign(algorithm="a"), "algorithm")
    line = axes[0, 0].lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata()), [0, 1.5, 4])
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [0.5, 0.65, 0.85])
    assert "higher is better" in axes[0, 0].get_ylabel()


def test_the_regret_panel_has_linear_and_loglog_columns():
    figure = regret_panel(frame(), "algorithm", order=("gshf", "dpo"))
    assert [ax.get_xscale() for ax in figure.axes] == ["linear", "log"] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gshf", "dpo"]


def test_files_are_equal_byte_for_byte_and_the_global_style_is_left_alone(tmp_path):
    before = dict(mpl.rcParams)
    for name in ("a", "b"):
        save(regret_panel(frame(), "algorithm"), tmp_path / "deep" / f"{name}.v1")
    assert (tmp_path / "deep" / "a.v1.svg").read_bytes() == (tmp_path / "deep" / "b.v1.svg").read_bytes()
    assert (tmp_path / "deep" / "a.v1.png").read_bytes() == (tmp_path / "deep" / "b.v1.png").read_bytes()
    assert dict(mpl.rcParams) == before
    with style():
        assert mpl.rcParams["svg.hashsalt"] == "simbandit"


def test_eight_lines_look_different_and_unknown_metrics_have_a_readable_label():
    assert len(set(lines(range(8)).values())) == 8
    assert len({look.color for look in lines(range(8)).values()}) == 8
    assert label("my_metric") == "my metric"

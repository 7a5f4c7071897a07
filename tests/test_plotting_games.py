"""Figures of games: the triangle's geometry and field, the cross-play square, medians of gaps."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.quiver import Quiver

from simbandit.guarantees import MissingData
from simbandit.plotting import PALETTE, lines, panels, save
from simbandit.plotting_games import CORNERS, cross_play, gaps, mirror_flow, paths, simplex, to_plane
from tests.cases import rows

RPS = np.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])


def axes() -> Axes:
    return panels()[1][0, 0]


def test_corners_of_the_simplex_are_corners_of_the_triangle():
    np.testing.assert_allclose(to_plane(np.eye(3)), CORNERS)
    sides = [np.linalg.norm(CORNERS[i] - CORNERS[i - 1]) for i in range(3)]
    np.testing.assert_allclose(sides, 1.0)
    np.testing.assert_allclose(to_plane([1 / 3, 1 / 3, 1 / 3]), [0.5, np.sqrt(3) / 6])


def test_the_flow_is_the_small_step_limit_of_mirror_descent():
    rng = np.random.default_rng(5)
    p, ref = rng.dirichlet(np.ones(3), 7), np.array([0.2, 0.5, 0.3])
    for kl_coef in (0.0, 0.3):
        velocity = mirror_flow(p, RPS, ref, kl_coef)
        np.testing.assert_allclose(velocity.sum(-1), 0.0, atol=1e-15)  # stays on the simplex
        size = 1e-6
        theta = torch.from_numpy((1 - size * kl_coef) * np.log(p) + size * (kl_coef * np.log(ref) + p @ RPS.T))
        step = torch.softmax(theta, -1).numpy() - p
        np.testing.assert_allclose(step / size, velocity, atol=1e-6)  # the next order of the step


def test_the_flow_rests_at_the_equilibrium():
    centre = np.full((1, 3), 1 / 3)
    np.testing.assert_allclose(mirror_flow(centre, RPS, centre[0], 0.4), 0.0, atol=1e-16)
    assert np.abs(mirror_flow([[0.5, 0.3, 0.2]], RPS, centre[0], 0.4)).max() > 0.01


def test_a_triangle_with_a_field_has_unit_arrows_inside():
    ax = axes()
    simplex(ax, ("x", "y", "z"), preference=RPS, arrows=8)
    field = ax.collections[0]
    assert isinstance(field, Quiver)
    points = np.asarray(field.get_offsets())
    assert len(points) == 7 * 6 // 2
    assert points[:, 1].min() > 0
    np.testing.assert_allclose(np.hypot(field.U, field.V)[:5], 1.0)
    assert [text.get_text().strip() for text in ax.texts] == ["x", "y", "z"]
    with pytest.raises(ValueError, match=r"preference: a simplex shows 3 actions"):
        simplex(ax, preference=np.full((4, 4), 0.5))


def test_paths_are_the_stored_probabilities_of_one_replicate():
    p = np.random.default_rng(1).dirichlet(np.ones(3), (2, 5))  # replicates x rounds
    frame = pd.concat([rows(p[..., i], f"probability_{i}", (0, 1, 2, 3, 4)) for i in range(3)]).assign(method="egpo")
    ax = axes()
    paths(ax, frame, "method", replicate=1, names={"egpo": "EGPO"})
    drawn = np.column_stack(ax.lines[0].get_data())
    np.testing.assert_allclose(drawn, to_plane(p[1]))
    assert ax.lines[0].get_label() == "EGPO"
    with pytest.raises(MissingData, match="replicate"):
        paths(ax, frame, "method", replicate=7)


def test_cross_play_writes_the_win_rates_of_rows_against_columns():
    ax = axes()
    cross_play(ax, [[0.5, 0.9], [0.1, 0.5]], ["a", "b"])
    image = ax.images[0]
    assert isinstance(image, AxesImage)
    np.testing.assert_allclose(np.asarray(image.get_array()), [[0.5, 0.9], [0.1, 0.5]])
    written = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
    assert written[1, 0] == "0.90"  # column 1, row 0
    with pytest.raises(ValueError, match="as many as names"):
        cross_play(ax, np.full((3, 2), 0.5), ["a", "b"])


def test_gaps_show_the_median_game_and_every_single_one():
    values = np.array([[1.0, 1e-3, 1e-20], [1.0, 1e-2, 1e-3], [1.0, 1e-1, 0.9]])
    frame = rows(values, "duality_gap", (0, 10, 100)).assign(method="omd")
    ax = axes()
    gaps(ax, frame, "duality_gap", "method", looks=lines(["omd"]), log_x=True)
    *thin, thick = ax.lines
    assert len(thin) == 3
    np.testing.assert_allclose(np.asarray(thick.get_ydata()), [1e-2, 1e-3])
    np.testing.assert_array_equal(np.asarray(thick.get_xdata()), [10, 100])
    assert np.asarray(thin[0].get_ydata())[-1] == 1e-16  # the rounding floor
    assert thick.get_color() == PALETTE[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    ax = axes()
    gaps(ax, frame, "duality_gap", "method", single=False)
    assert len(ax.lines) == 1


def test_the_files_are_equal_byte_for_byte(tmp_path):
    written = []
    for name in ("a", "b"):
        figure, drawn = panels()
        simplex(drawn[0, 0], preference=RPS, kl_coef=0.1)
        written.append(save(figure, tmp_path / name)[0].read_bytes())
    assert written[0] == written[1]

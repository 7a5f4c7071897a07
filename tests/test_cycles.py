"""Radius and period of cycles that are known."""

import numpy as np
import pytest

from simbandit.cycles import limit_cycle

T = np.arange(600)


def spiral(period: float, growth: float = 1.0, radius: float = 0.3) -> np.ndarray:
    angle = 2 * np.pi * T / period
    size = radius * growth**T
    return np.stack([0.2 + size * np.cos(angle), 0.7 + size * np.sin(angle), np.full(len(T), 0.1)], -1)


@pytest.mark.parametrize("period", [3.7, 11.0, 47.3])
def test_a_circle_has_its_radius_period_and_centre(period):
    cycle = limit_cycle(spiral(period))
    assert cycle.radius == pytest.approx(0.3, rel=5e-3)
    assert cycle.period == pytest.approx(period, rel=1e-2)
    assert cycle.centre == pytest.approx([0.2, 0.7, 0.1], abs=0.02)  # half a turn left over of six
    assert cycle.growth == pytest.approx(1, abs=0.02)
    assert cycle.turns == pytest.approx(300 / period, abs=1.5)


def test_rounds_units_and_metrics():
    every = slice(None, None, 3)
    sparse = limit_cycle(spiral(47.3)[every], T[every])
    assert sparse.period == pytest.approx(47.3, rel=1e-2)
    assert limit_cycle(spiral(47.3)[:, 0], last=0.8).period == pytest.approx(47.3, rel=1e-2)
    flips = limit_cycle(np.where(T % 2, 0.4, 0.6))
    assert (flips.period, flips.radius) == (pytest.approx(2), pytest.approx(0.1))


def test_growth_tells_cycles_from_spirals_and_rest():
    assert limit_cycle(spiral(11, 0.99)).growth < 0.5
    assert limit_cycle(spiral(11, 1.01)).growth > 2
    rest = limit_cycle(np.full((20, 3), 0.25))
    assert (rest.radius, rest.growth, rest.turns) == (0.0, 0.0, 0)
    assert np.isnan(rest.period)
    assert np.isnan(limit_cycle(T / 600).period)  # a line passes its centre once


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((10, 3)), {}, "holds 5 records and needs 8"),
        (np.full((20, 2), np.nan), {}, "must be finite"),
        (np.zeros((20, 2)), {"rounds": np.zeros(20)}, "rounds increasing"),
        (np.zeros((20, 2)), {"rounds": np.arange(19)}, r"must be \(T, n\)"),
        (np.zeros((2, 2, 2)), {}, r"must be \(T, n\)"),
        (np.zeros((20, 2)), {"last": 0.0}, "last: must lie in"),
    ],
)
def test_bad_trajectories_are_named(values, options, message):
    with pytest.raises(ValueError, match=message):
        limit_cycle(values, **options)

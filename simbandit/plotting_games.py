"""Figures of games, from stored numbers: paths on the simplex of three actions, cross-play, gaps over oracle
evaluations.

The same style as `plotting`: one palette, intervals or every single game shown, never smoothed (a moving window hides
cycles).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike

from simbandit.guarantees.rows import Where, pivot, select
from simbandit.plotting import STYLE, Line, label, lines

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
PROBABILITIES = ("probability_0", "probability_1", "probability_2")
LOWEST = 1e-16  # gaps below are rounding


def to_plane(probabilities: ArrayLike) -> np.ndarray:
    """Points (..., 3) of the simplex as points (..., 2) of an equilateral triangle of side 1."""
    return np.asarray(probabilities, dtype=float) @ CORNERS


def mirror_flow(probabilities: ArrayLike, preference: ArrayLike, ref: ArrayLike, kl_coef: float) -> np.ndarray:
    """The velocity (..., A) of mirror descent with infinitely small steps: p (v - p'v), v = P p - kl_coef log(p / ref).

    At kl_coef = 0 it is the replicator dynamics. Policies p (..., A) and ref (A,) must be positive.
    """
    p = np.asarray(probabilities, dtype=float)
    payoff = p @ np.asarray(preference, dtype=float).T
    if kl_coef > 0:
        payoff = payoff - kl_coef * np.log(p / np.asarray(ref, dtype=float))
    return p * (payoff - (p * payoff).sum(-1, keepdims=True))


@mpl.rc_context(STYLE)
def simplex(
    ax: Axes,
    names: Sequence[str] = ("a", "b", "c"),
    *,
    preference: ArrayLike | None = None,
    ref: ArrayLike | None = None,
    kl_coef: float = 0.0,
    arrows: int = 11,
) -> None:
    """The triangle of policies over three actions; with a preference (3, 3), the field of `mirror_flow` on it.

    Arrows show directions, their shade the speed. ref: the reference policy, uniform if None. Raises ValueError for a
    preference of another size.
    """
    ax.set_aspect("equal")
    ax.axis("off")
    ax.plot(*CORNERS[[0, 1, 2, 0]].T, color="0.3", linewidth=0.8, zorder=1)
    sides = (("right", "top"), ("left", "top"), ("center", "bottom"))
    for corner, name, (across, up) in zip(CORNERS, names, sides, strict=True):
        ax.text(corner[0], corner[1], f" {name} ", ha=across, va=up)
    if preference is None:
        return
    if np.shape(preference) != (3, 3):
        raise ValueError(f"preference: a simplex shows 3 actions, shape (3, 3), got {np.shape(preference)}")
    inner = np.array([(i, j, arrows - i - j) for i in range(1, arrows) for j in range(1, arrows - i)], dtype=float)
    points = inner / arrows
    velocity = to_plane(mirror_flow(points, preference, np.full(3, 1 / 3) if ref is None else ref, kl_coef))
    speed = np.linalg.norm(velocity, axis=-1, keepdims=True)
    unit = np.divide(velocity, speed, out=np.zeros_like(velocity), where=speed > 0)
    ax.quiver(
        *to_plane(points).T,
        *unit.T,
        speed[:, 0],
        cmap="Greys",
        clim=(-0.5 * speed.max(), 1.2 * speed.max()),
        scale=1.5 * arrows,
        width=0.004,
        pivot="mid",
        zorder=0,
    )


@mpl.rc_context(STYLE)
def paths(
    ax: Axes,
    frame: pd.DataFrame,
    hue: str,
    *,
    metrics: Sequence[str] = PROBABILITIES,
    replicate: int = 0,
    where: Where | None = None,
    order: Sequence[Any] | None = None,
    names: Mapping[Any, str] | None = None,
    looks: Mapping[Any, Line] | None = None,
    legend: bool = True,
) -> None:
    """One replicate's policies as a path, one per value of `hue`: a ring at its start, a dot at its end.

    metrics: the stored metrics that hold the three probabilities, by round. Raises MissingData if there are none.
    """
    rows = select(frame, {**(where or {}), "replicate": replicate})
    order = list(rows[hue].unique()) if order is None else order
    looks = lines(order) if looks is None else looks
    for name in order:
        path = select(rows, {hue: name})
        columns = [pivot(select(path, {"metric": metric}), "round").to_numpy()[0] for metric in metrics]
        points, look = to_plane(np.stack(columns, axis=-1)), looks[name]
        text = str((names or {}).get(name, name))
        ax.plot(*points.T, color=look.color, linestyle=look.dash, linewidth=1.0, label=text, zorder=2)
        ax.plot(*points[0], marker="o", markerfacecolor="white", color=look.color, zorder=3)
        ax.plot(*points[-1], marker="o", color=look.color, zorder=4)
    if legend:
        ax.legend()


@mpl.rc_context(STYLE)
def cross_play(ax: Axes, win_rates: ArrayLike, names: Sequence[str]) -> None:
    """Win rate of each row's policy against each column's, (n, n) with P + P' = 1, written into a coloured square.

    Raises ValueError unless it is square with a name for each row.
    """
    table = np.asarray(win_rates, dtype=float)
    if table.shape != (len(names), len(names)):
        raise ValueError(f"win_rates: must be ({len(names)}, {len(names)}), as many as names, got {table.shape}")
    ax.imshow(table, cmap="RdBu", vmin=0.0, vmax=1.0)
    for (row, column), value in np.ndenumerate(table):
        shade = "white" if abs(value - 0.5) > 0.3 else "black"
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=shade, fontsize=6)
    ax.set_xticks(range(len(names)), list(names), rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), list(names))
    ax.grid(False)
    ax.tick_params(length=0)
    ax.set_xlabel("column: the opponent")
    ax.set_ylabel("row: the winner")


@mpl.rc_context(STYLE)
def gaps(
    ax: Axes,
    frame: pd.DataFrame,
    metric: str,
    hue: str,
    *,
    x: str = "round",
    x_label: str = "oracle evaluations",
    lowest: float = LOWEST,
    log_x: bool = False,
    single: bool = True,
    where: Where | None = None,
    order: Sequence[Any] | None = None,
    names: Mapping[Any, str] | None = None,
    looks: Mapping[Any, Line] | None = None,
    legend: bool = True,
) -> None:
    """`metric` over oracle evaluations, on a logarithmic axis: the median game thick, every single game thin.

    A mean would show the worst game alone. With exact feedback a round is one evaluation. Values below `lowest` are
    drawn there. single: draw the thin lines.
    """
    rows = select(frame, {**(where or {}), "metric": metric})
    order = list(rows[hue].unique()) if order is None else order
    looks = lines(order) if looks is None else looks
    for name in order:
        table = pivot(select(rows, {hue: name}), x)
        if log_x:
            table = table.loc[:, table.columns > 0]
        at, values = table.columns.to_numpy(dtype=float), np.maximum(table.to_numpy(), lowest)
        look = looks[name]
        text = str((names or {}).get(name, name))
        if single and len(values) > 1:
            ax.plot(at, values.T, color=look.color, linewidth=0.4, alpha=0.25, zorder=1)
        ax.plot(at, np.median(values, axis=0), color=look.color, linestyle=look.dash, label=text, zorder=2)
    ax.set_yscale("log")
    if log_x:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k
    ax.set_xlabel(x_label)
    ax.set_ylabel(label(metric))
    if legend:
        ax.legend()

"""Figures from stored rows: one style, a colour-blind safe palette, intervals as bands.

The statistics come from `simbandit.guarantees.statistics`; nothing here runs an algorithm. Metric names carry
their unit and direction into the axis labels. Colours follow the order of the lines, so give `order` for a
stable legend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simbandit.guarantees.bounds import Bound, Parameters
from simbandit.guarantees.rows import Where, pivot, select
from simbandit.guarantees.statistics import Interval, mean_interval, slope_interval

COLUMN, PAGE = 3.4, 7.0  # inches: one column and the full width of a page
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8C6D31",
)  # Okabe and Ito
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.labelspacing": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "savefig.dpi": 300,
    "svg.hashsalt": "simbandit",
    "svg.fonttype": "path",
}
GREY, FADED = "#333333", "#c4c4c4"  # a bound where its assumptions hold, and where they fail
LOWER, HIGHER = "(lower is better)", "(higher is better)"
LABELS = {
    "queries": "queries (comparisons asked)",
    "round": "round",
    "suboptimality": r"suboptimality $J(\pi^*)-J(\pi)$ [reward]" f"\n{LOWER}",
    "cumulative_suboptimality": f"cumulative suboptimality [reward]\n{LOWER}",
    "reward_regret": f"regret of the actions played [reward]\n{LOWER}",
    "cumulative_reward_regret": f"cumulative regret [reward]\n{LOWER}",
    "argmax_regret": f"regret of the best guess [reward]\n{LOWER}",
    "duality_gap": f"duality gap [win probability]\n{LOWER}",
    "unregularised_gap": f"duality gap without KL [win probability]\n{LOWER}",
    "kl_to_nash": r"KL$(\pi_{\mathrm{Nash}}\,\|\,\pi)$ [nats]" f"\n{LOWER}",
    "kl_to_ref": r"KL$(\pi\,\|\,\pi_{\mathrm{ref}})$ [nats]",
    "kl_to_optimum": r"KL$(\pi\,\|\,\pi^*)$ [nats]" f"\n{LOWER}",
    "expected_reward": f"expected reward\n{HIGHER}",
    "win_rate_vs_ref": f"win rate against the reference\n{HIGHER}",
    "informative_pairs": "informative duels (two different actions)",
    "estimation_error": rf"estimation error in the data norm\n{LOWER}",
    "oracle_evaluations": "oracle evaluations",
    "fit_residual": "gradient norm of the fit",
    "dim": "dimension d",
    "n_actions": "actions K",
    "gap": "gap [reward]",
    "kl_coef": "kl_coef [reward / nat]",
    "horizon": "horizon T [rounds]",
    "scale": r"reward scale $\|\theta^*\|$ [reward]",
}

P = ParamSpec("P")
T = TypeVar("T")


class Line(NamedTuple):
    """How one entry of a legend looks."""

    color: str
    dash: Any
    marker: str


def style() -> AbstractContextManager[None]:
    """The house style, within a `with` block; every function of this module draws in it."""
    return mpl.rc_context(STYLE)


def _styled(function: Callable[P, T]) -> Callable[P, T]:
    @wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        with style():
            return function(*args, **kwargs)

    return drawn


def label(name: str) -> str:
    """A metric's or label's axis text, with unit and direction where they are known."""
    return LABELS.get(name, name.replace("_", " "))


def lines(names: Sequence[Any]) -> dict[Any, Line]:
    """Colour, dash and marker of each name, by position."""
    looks = zip(cycle(PALETTE), cycle(DASHES), cycle(MARKERS), strict=False)
    return {name: Line(*look) for name, look in zip(names, looks, strict=False)}


@_styled
def panels(
    columns: int = 1, rows: int = 1, width: float | None = None, height: float = 2.5
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes (rows, columns); width in inches (one panel: a column, more: a page), height per
    row."""
    if width is None:
        width = COLUMN if columns == 1 else PAGE
    figure = Figure(figsize=(width, height * rows))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


@_styled
def curves(
    ax: Axes,
    frame: pd.DataFrame,
    metric: str,
    hue: str,
    *,
    x: str = "queries",
    loglog: bool = False,
    where: Where | None = None,
    order: Sequence[Any] | None = None,
    names: Mapping[Any, str] | None = None,
    looks: Mapping[Any, Line] | None = None,
    legend: bool = True,
) -> dict[Any, Interval]:
    """The mean of `metric` over x with its 95 % band, one line per value of the label `hue`.

    x: "queries", "round", or a label column (then each cell counts at its last recorded round, with markers).
    order: which values, in which order (default: as they appear). names: the legend's words. Log-log leaves
    out x = 0. Raises ValueError if the rows of a line hold several cells, MissingData if there are none.
    """
    rows = select(frame, {**(where or {}), "metric": metric})
    order = list(rows[hue].unique()) if order is None else order
    looks = lines(order) if looks is None else looks
    drawn = {}
    for name in order:
        table = pivot(select(rows, {hue: name}), x)
        if loglog:
            table = table.loc[:, table.columns > 0]
        at, interval = table.columns.to_numpy(dtype=float), mean_interval(table.to_numpy())
        look, by_label = looks[name], x not in ("queries", "round")
        ax.plot(
            at,
            interval.estimate,
            color=look.color,
            linestyle=look.dash,
            marker=look.marker if by_label else "",
            label=str((names or {}).get(name, name)),
        )
        if len(table) > 1:
            ax.fill_between(at, interval.low, interval.high, color=look.color, alpha=0.2, linewidth=0)
        drawn[name] = interval
    if loglog:
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.set_xlabel(label(x))
    ax.set_ylabel(label(metric))
    if legend:
        ax.legend()
    return drawn


@_styled
def frontier(
    ax: Axes,
    frame: pd.DataFrame,
    hue: str,
    *,
    x: str = "kl_to_ref",
    y: str = "win_rate_vs_ref",
    along: str = "round",
    where: Where | None = None,
    order: Sequence[Any] | None = None,
    names: Mapping[Any, str] | None = None,
    looks: Mapping[Any, Line] | None = None,
    legend: bool = True,
) -> None:
    """RLHF's reward-KL frontier: mean y against mean x, one path per value of `hue`, 95 % intervals as
    crosses.

    along: what a path's points are: "round" (the rounds of one run) or a label such as kl_coef (each cell at
    its last recorded round).
    """
    rows = select(frame, where or {})
    order = list(select(rows, {"metric": y})[hue].unique()) if order is None else order
    looks = lines(order) if looks is None else looks
    for name in order:
        path = select(rows, {hue: name})
        across, up = (pivot(select(path, {"metric": m}), along) for m in (x, y))
        shared = across.columns.intersection(up.columns)
        h, v = mean_interval(across[shared].to_numpy()), mean_interval(up[shared].to_numpy())
        look = looks[name]
        text = str((names or {}).get(name, name))
        marked = _spread(len(shared)) if along == "round" else np.arange(len(shared))
        ax.plot(
            h.estimate,
            v.estimate,
            color=look.color,
            linestyle=look.dash,
            marker=look.marker,
            markevery=marked.tolist(),
            label=text,
        )
        if min(len(across), len(up)) > 1:
            cross = {"color": look.color, "alpha": 0.4, "linewidth": 0.8}
            ax.vlines(h.estimate[marked], v.low[marked], v.high[marked], **cross)
            ax.hlines(v.estimate[marked], h.low[marked], h.high[marked], **cross)
    ax.set_xlabel(label(x))
    ax.set_ylabel(label(y))
    if legend:
        ax.legend()


def _spread(n: int, marks: int = 7) -> np.ndarray:
    """Positions of the points to mark among n: first, last, and closer together at the start, where policies move."""
    return np.unique(np.geomspace(1, n, min(n, marks)).round().astype(int)) - 1


@_styled
def regret_panel(
    frame: pd.DataFrame,
    hue: str,
    *,
    metrics: Sequence[str] = ("suboptimality", "cumulative_reward_regret"),
    x: str = "queries",
    where: Where | None = None,
    order: Sequence[Any] | None = None,
    names: Mapping[Any, str] | None = None,
) -> Figure:
    """The standard picture: each metric over queries, linear (left) and log-log (right); one legend above."""
    figure, axes = panels(columns=2, rows=len(metrics), height=2.3)
    for row, metric in zip(axes, metrics, strict=True):
        for ax, loglog in zip(row, (False, True), strict=True):
            curves(
                ax,
                frame,
                metric,
                hue,
                x=x,
                loglog=loglog,
                where=where,
                order=order,
                names=names,
                legend=False,
            )
    legend_above(figure, axes[0, 0])
    return figure


@_styled
def parameter_sweep(
    ax: Axes,
    frame: pd.DataFrame,
    metric: str,
    hue: str,
    x: str,
    *,
    bounds: Sequence[Bound] = (),
    parameters: Callable[[float], Parameters] | None = None,
    window: tuple[float, float] = (0.0, np.inf),
    where: Where | None = None,
    order: Sequence[Any] | None = None,
    names: Mapping[Any, str] | None = None,
    looks: Mapping[Any, Line] | None = None,
    legend: bool = True,
) -> dict[Any, Interval]:
    """Regret as a function of a problem parameter, log-log: each cell at its last recorded round, over the label `x`.

    The legend tells each line's exponent, the slope over `window` by the replicate bootstrap, which is also returned.
    bounds: drawn at the swept values from `parameters(value)`, see `overlay`.
    """
    rows = select(frame, {**(where or {}), "metric": metric})
    order = list(rows[hue].unique()) if order is None else order
    slopes, texts = {}, {}
    for name in order:
        table = pivot(select(rows, {hue: name}), x)
        at = table.columns.to_numpy(dtype=float)
        inside = (at >= window[0]) & (at <= window[1])
        slopes[name] = slope_interval(at[inside], table.to_numpy()[:, inside])
        texts[name] = f"{(names or {}).get(name, name)} {slopes[name].estimate:+.2f}".strip()
    curves(ax, rows, metric, hue, x=x, loglog=True, order=order, names=texts, looks=looks, legend=False)
    swept = np.unique(rows[x].to_numpy(dtype=float))
    ax.set_xticks(swept, [f"{value:g}" for value in swept])
    ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    for bound in bounds:
        assert parameters is not None, "bounds need `parameters`"
        overlay(ax, bound, parameters, swept)
    if legend:
        ax.legend()
    return slopes


@_styled
def overlay(
    ax: Axes, bound: Bound, parameters: Callable[[float], Parameters], at: Sequence[float] | np.ndarray
) -> tuple[str, ...]:
    """A theorem's bound over a problem parameter: solid (upper) or dotted (lower), grey where its assumptions fail.

    at: the parameter's values, from which `parameters` makes the problem's numbers. A piece of the line between two
    values is drawn as valid only where both are. Returns the reasons why it is grey somewhere, and writes the first
    one beside the line.
    """
    given = [parameters(float(value)) for value in at]
    x, y = np.asarray(at, dtype=float), np.array([bound(p) for p in given])
    broken = [bound.broken(p) for p in given]
    valid = np.array([not reasons for reasons in broken])
    dash = "-" if bound.side == "upper" else ":"
    if valid.size > 1:
        both = valid[1:] & valid[:-1]
        for color, pieces in ((FADED, ~both), (GREY, both)):
            start = [np.nan if not drawn else value for value, drawn in zip(y[:-1], pieces, strict=True)]
            segments = np.column_stack([x[:-1], x[1:], np.full(len(both), np.nan)]).ravel()
            heights = np.column_stack([start, np.where(pieces, y[1:], np.nan), np.full(len(both), np.nan)]).ravel()
            ax.plot(segments, heights, color=color, linestyle=dash, linewidth=1.0)
    ax.plot(x[~valid], y[~valid], ".", color=FADED, markersize=4)
    ax.plot(x[valid], y[valid], ".", color=GREY, markersize=4)
    reasons = tuple(dict.fromkeys(reason for each in broken for reason in each))
    if ax.get_yscale() == "log":  # room for the name
        (low, high), factor = ax.get_ylim(), 30 if reasons else 4
        ax.set_ylim(min(low, y.min() / factor), max(high, y.max() * factor))
    above = bound.side == "upper"
    end = -1 if (y[-1] > y[0]) == above else 0  # where the line bends away from its name
    ax.annotate(
        "\n".join([bound.name, *(reason.replace("; ", ";\n") for reason in reasons[:1])]),
        (x[end], y[end]),
        xytext=(0, 4 if above else -4),
        textcoords="offset points",
        ha="right" if end else "left",
        va="bottom" if above else "top",
        fontsize=5.5,
        color=GREY if valid.any() else "#888888",
    ).set_in_layout(False)
    return reasons


@_styled
def legend_above(figure: Figure, ax: Axes, columns: int = 4) -> None:
    """One legend for all panels, above them, from the lines of one of them."""
    handles, texts = ax.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper center", ncols=min(columns, len(texts)))


@_styled
def save(figure: Figure, path: Path | str) -> tuple[Path, Path]:
    """Writes path.svg and path.png (300 dpi), byte-equal for equal figures: no dates, no random
    identifiers."""
    base = Path(path)
    base.parent.mkdir(parents=True, exist_ok=True)
    svg, png = base.with_name(base.name + ".svg"), base.with_name(base.name + ".png")
    figure.savefig(svg, metadata={"Date": None, "Creator": "simbandit"})
    figure.savefig(png, metadata={"Software": None})
    return svg, png

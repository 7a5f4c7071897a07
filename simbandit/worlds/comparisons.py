"""A world and its annotator from a user's own comparisons: one row per duel, who was shown and who won."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from simbandit.solvers import Local, minimise, newton_local
from simbandit.worlds import arrays
from simbandit.worlds.frames import check_columns, check_labels, read
from simbandit.worlds.table import TableWorld

if TYPE_CHECKING:
    from pandas import DataFrame

    from simbandit.oracles import PreferenceTable

FIT_TOLERANCE = 1e-9  # on the gradient of a Bradley-Terry fit, in wins


class Comparisons(NamedTuple):
    """Counts of comparisons. Actions are numbered within each context, in the order of their sorted labels.

    wins (X, A, A): how often the first was preferred to the second, a tie counting 1/2 each way; offered (X, A):
    whether the context has an item of this number; contexts: X labels; items: the labels of each context's items.
    """

    wins: np.ndarray
    offered: np.ndarray
    contexts: tuple[Hashable, ...]
    items: tuple[tuple[Hashable, ...], ...]


def from_comparisons(
    frame: DataFrame | str | Path,
    *,
    context: str | None = None,
    left: str,
    right: str,
    winner: str,
    tie: Hashable | None = None,
    items: Mapping[Any, Sequence[Hashable]] | None = None,
    unseen: Literal["half", "bradley_terry"] = "half",
    pseudo_count: float = 0.0,
    ridge: float = 1.0,
) -> tuple[TableWorld, PreferenceTable]:
    """The world and the preference oracle of real comparisons, such as crowdsourced judgments.

    frame: a DataFrame, or the path of a CSV or Parquet file, one row per comparison; context: its column of contexts,
    None for one context; left, right: the items shown; winner: the one preferred, or the label `tie`. Contexts may be
    ragged: actions are numbered within each context (`world.item_names`; `world.action_names` too where all contexts
    have the same items), the reference is uniform over them, contexts count alike. items: all that each context offers,
    by context; None is what was compared there.

    P(a > b | x) = (wins + pseudo_count) / (comparisons + 2 pseudo_count) of a pair that was compared. A pair never
    compared follows `unseen`: "half" calls it 1/2; "bradley_terry" takes sigma(s_a - s_b) of scores fitted to that
    context's comparisons, with penalty ridge / 2 |s|^2 (a Gaussian prior of variance 1 / ridge on every score).

    Warns (UserWarning), naming contexts, where items fall into groups never compared with each other. Raises
    ValueError, naming the argument, for an unreadable file, missing columns or labels, an item compared with itself, a
    winner that is neither side, an item outside `items`, a context without comparisons.
    """
    # Here, not above: oracles are built on this package's checks of arrays.
    from simbandit.oracles.tables import PreferenceTable

    if unseen not in ("half", "bradley_terry"):
        raise ValueError(f"unseen: must be 'half' or 'bradley_terry', got {unseen!r}")
    pseudo_count = arrays.number("pseudo_count", pseudo_count, 0.0)
    ridge = arrays.number("ridge", ridge, 0.0, above=True)
    counts = count_comparisons(frame, context=context, left=left, right=right, winner=winner, tie=tie, items=items)
    _warn_of_groups(counts, unseen)
    compared = counts.wins + counts.wins.swapaxes(1, 2)
    guess = 0.5
    if unseen == "bradley_terry":
        scores = bradley_terry_scores(counts, ridge)
        guess = 1 / (1 + np.exp(scores[:, None, :] - scores[:, :, None]))
    seen = np.maximum(compared, 1) + 2 * pseudo_count
    preference = np.where(compared > 0, (counts.wins + pseudo_count) / seen, guess)
    present = counts.offered[:, :, None] & counts.offered[:, None, :]
    preference = np.where(present & ~np.eye(preference.shape[-1], dtype=bool), preference, 0.5)
    with np.errstate(divide="ignore"):  # log 0 = -inf is how an absent action is written
        ref = np.log(counts.offered / counts.offered.sum(1, keepdims=True))
    world = TableWorld(
        ref_log_probs=ref,
        context_names=counts.contexts,
        action_names=counts.items[0] if len(set(counts.items)) == 1 else None,
        item_names=counts.items,
    )
    return world, PreferenceTable(preference)


def count_comparisons(
    frame: DataFrame | str | Path,
    *,
    context: str | None = None,
    left: str,
    right: str,
    winner: str,
    tie: Hashable | None = None,
    items: Mapping[Any, Sequence[Hashable]] | None = None,
) -> Comparisons:
    """The counts behind `from_comparisons`, with its arguments and errors."""
    import pandas as pd  # here, not above: costs every user of the package its import time

    if not isinstance(frame, pd.DataFrame):
        frame = read(Path(frame))
    asked = [("context", context), ("left", left), ("right", right), ("winner", winner)]
    check_columns(frame, asked)
    check_labels(frame, asked)
    shown, other, won = (frame[column].to_numpy(dtype=object) for column in (left, right, winner))
    for argument, values in (("left", shown), ("right", other)):
        blank = np.flatnonzero([isinstance(value, str) and not value.strip() for value in values])
        if len(blank):
            raise ValueError(f"{argument}: row {blank[0]} has an empty item ({len(blank)} such rows)")
    itself = np.flatnonzero(shown == other)
    if len(itself):
        raise ValueError(
            f"left, right: row {itself[0]} compares {shown[itself[0]]!r} with itself ({len(itself)} such rows)"
        )
    first, second = won == shown, won == other
    tied = np.zeros(len(won), dtype=bool) if tie is None else won == tie
    neither = np.flatnonzero(~(first | second | tied))
    if len(neither):
        row = neither[0]
        raise ValueError(
            f"winner: row {row} names {won[row]!r}, which is neither left, {shown[row]!r}, nor right, {other[row]!r} "
            f"({len(neither)} such rows)" + ("" if tie is not None else "; ties have a label of their own: tie=")
        )
    at, names = (
        (np.zeros(len(won), dtype=np.int64), (0,))
        if context is None
        else _labels(*pd.factorize(frame[context], sort=True))
    )
    catalogue = _catalogue(at, names, shown, other, items)
    most = max(map(len, catalogue))
    arrays.affordable("frame", 4 * len(names) * most**2, f"{len(names):,} contexts x {most:,} x {most:,} items")
    number = [{item: i for i, item in enumerate(offer)} for offer in catalogue]
    a = np.array([number[x][item] for x, item in zip(at, shown, strict=True)])
    b = np.array([number[x][item] for x, item in zip(at, other, strict=True)])
    wins = np.zeros((len(names), most, most))
    np.add.at(wins, (at, a, b), first + tied / 2)
    np.add.at(wins, (at, b, a), second + tied / 2)
    offered = np.arange(most) < np.array([len(offer) for offer in catalogue])[:, None]
    return Comparisons(wins, offered, names, catalogue)


def bradley_terry_scores(counts: Comparisons, ridge: float = 1.0) -> np.ndarray:
    """Scores s (X, A) minimising, per context, - sum wins_ab log sigma(s_a - s_b) + ridge / 2 |s|^2, by Newton.

    They sum to 0 within each connected group of items. Raises ArithmeticError where the gradient stays above 1e-9
    comparisons, relative to 1 + the context's comparisons.
    """
    wins = torch.from_numpy(counts.wins)
    eye = torch.eye(wins.shape[-1], dtype=wins.dtype)
    total = wins + wins.mT

    def local(s: Tensor) -> Local:
        margin = s[:, :, None] - s[:, None, :]
        value = -(wins * torch.nn.functional.logsigmoid(margin)).sum((1, 2)) + ridge / 2 * s.square().sum(-1)
        gradient = -(wins - total * torch.sigmoid(margin)).sum(-1) + ridge * s

        def hessian() -> Tensor:
            weight = total * torch.sigmoid(margin) * torch.sigmoid(-margin)
            return torch.diag_embed(weight.sum(-1)) - weight + ridge * eye

        return newton_local(value, gradient, hessian, s, None)

    tolerance = FIT_TOLERANCE * (1 + total.sum((1, 2)) / 2)
    fit = minimise(local, torch.zeros_like(wins[..., 0]), tolerance=tolerance)
    if not bool(fit.converged.all()):
        worst = int((fit.residual / tolerance).argmax())
        raise ArithmeticError(
            f"bradley_terry: no convergence in context {counts.contexts[worst]!r}: gradient {fit.residual[worst]:.3g}"
        )
    return fit.argmin.numpy()


def comparison_groups(counts: Comparisons) -> np.ndarray:
    """Connected groups of each context's comparison graph, (X,): 1 where every item is comparable with every other."""
    groups = []
    for wins, offered in zip(counts.wins, counts.offered, strict=True):
        n = int(offered.sum())
        groups.append(connected_components(coo_array(wins[:n, :n]), directed=False, return_labels=False))
    return np.array(groups)


def _warn_of_groups(counts: Comparisons, unseen: str) -> None:
    groups = comparison_groups(counts)
    apart = np.flatnonzero(groups > 1)
    if not len(apart):
        return
    listed = ", ".join(f"{counts.contexts[x]!r} ({groups[x]} groups)" for x in apart[:3])
    more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
    rule = (
        "between groups each pair is called 1/2"
        if unseen == "half"
        else "between groups the fit's ridge decides: each group is centred at score 0"
    )
    warnings.warn(
        f"comparisons: items fall into groups never compared with each other in context {listed}{more}. Bradley-Terry "
        f"scores have no meaning across groups; {rule}",
        stacklevel=3,
    )


def _labels(codes: np.ndarray, names: Any) -> tuple[np.ndarray, tuple[Hashable, ...]]:
    return codes, tuple(names.tolist())


def _catalogue(
    at: np.ndarray,
    names: tuple[Hashable, ...],
    shown: np.ndarray,
    other: np.ndarray,
    items: Mapping[Any, Sequence[Hashable]] | None,
) -> tuple[tuple[Hashable, ...], ...]:
    """The items of each context, sorted: those given, which must hold those compared, or those compared."""
    compared: list[set[Hashable]] = [set() for _ in names]
    for x, a, b in zip(at, shown, other, strict=True):
        compared[x] |= {a, b}
    if items is None:
        return tuple(tuple(sorted(offer, key=_order)) for offer in compared)
    idle = [name for name in items if name not in set(names)]
    if idle:
        raise ValueError(f"items: context {idle[0]!r} has no comparisons ({len(idle)} such contexts)")
    for name, offer in zip(names, compared, strict=True):
        strange = sorted(offer - set(items.get(name, ())), key=_order)
        if strange:
            raise ValueError(f"items: context {name!r} does not offer {strange[0]!r}, which was compared there")
    return tuple(tuple(sorted(set(items[name]), key=_order)) for name in names)


def _order(label: Any) -> tuple[bool, Any]:
    """Numbers by size, then all else by its text."""
    is_text = not isinstance(label, int | float | np.number)
    return is_text, str(label) if is_text else label

"""Does a reward explain these duels? Tests of Bradley-Terry and of transitivity, and the Hodge split.

Counts are wins[x, a, b]: how often a beat b in context x. P-values are Monte Carlo, (1 + #{simulated >= observed}) /
(1 + simulations), from generators keyed by (seed, simulation, purpose): the same data give the same answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from simbandit.draws import generator
from simbandit.preferences import fit_bradley_terry, tabular_mle

EXACT_ORDERS = 12
"""Up to this many actions the best order is found exactly (2^A subsets); beyond, by moving one action at a time."""


class Counts(NamedTuple):
    """wins (X, A, A) with the names that its axes stand for; A is the largest number of actions of any context, and an
    action past a context's own has no duels."""

    wins: Tensor
    contexts: tuple[Hashable, ...]
    actions: tuple[tuple[Hashable, ...], ...]


class Hypothesis(NamedTuple):
    """A test over all contexts: summed statistic, its p-value, and one row per context: context, duels, pairs,
    statistic, p_value and what the test adds."""

    statistic: float
    p_value: float
    contexts: pd.DataFrame


def count_duels(
    frame: pd.DataFrame,
    *,
    context: str | None = "context",
    first: str = "first",
    second: str = "second",
    preferred: str = "preferred",
) -> Counts:
    """Counts of a user's duels: columns of any labels, `preferred` 1 where the first won and 0 where the second did.
    context=None pools all rows. A duel of an action with itself is left out. Raises ValueError naming a missing column,
    the first row whose label is not 0 or 1, or a frame without duels."""
    columns = [c for c in (context, first, second, preferred) if c is not None]
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise ValueError(f"frame: columns {missing} are missing; there are {list(frame.columns)}")
    label = frame[[preferred]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float, na_value=np.nan)[:, 0]
    bad = ~np.isin(label, (0.0, 1.0))
    if bad.any():
        raise ValueError(
            f"{preferred}: a test counts winners, so it must be 0 or 1; row {frame.index[int(bad.argmax())]!r} has "
            f"{frame[preferred].tolist()[int(bad.argmax())]!r} (drop ties, or draw their winners)"
        )
    one, two = (np.array(frame[side].tolist(), dtype=object) for side in (first, second))
    told = one != two
    if not told.any():
        raise ValueError("frame: holds no duel between two different actions")
    one, two, won = one[told], two[told], label[told] == 1
    x, contexts = np.zeros(len(one), dtype=int), (None,)
    if context is not None:
        x, contexts = _codes(context, np.array(frame[context].tolist(), dtype=object)[told])
    actions, cells = [], []
    for c in range(len(contexts)):
        here = x == c
        codes, names = _codes(f"{first}, {second}", np.concatenate([one[here], two[here]]))
        a, b = np.split(codes, 2)
        actions.append(names)
        cells.append((np.where(won[here], a, b), np.where(won[here], b, a)))
    A = max(len(names) for names in actions)
    wins = np.zeros((len(contexts), A, A))
    for table, cell in zip(wins, cells, strict=True):
        np.add.at(table, cell, 1.0)
    return Counts(torch.from_numpy(wins), contexts, tuple(actions))


def _codes(column: str, values: np.ndarray) -> tuple[np.ndarray, tuple[Hashable, ...]]:
    codes, names = pd.factorize(values, sort=True)
    if (codes < 0).any():
        raise ValueError(f"{column}: holds missing values; drop those rows")
    return codes, tuple(names.tolist())


def bradley_terry_test(
    duels: pd.DataFrame | Counts | Tensor, *, simulations: int = 499, seed: int = 0, ridge: float = 1.0
) -> Hypothesis:
    """Likelihood-ratio test of Bradley-Terry against a free probability for every pair, by parametric bootstrap.

    Per context: fit scores, deviance = 2 (saturated - fitted log-likelihood); then draw the same numbers of duels from
    fitted scores `simulations` times and refit. The chi-squared law of the deviance fails for the few duels per pair
    that human data have. The scores drawn from have a Gaussian prior of variance 1 / ridge. With few duels an action
    those of maximum likelihood are too extreme and duels drawn from them too predictable: at ridge -> 0 the test of
    level 5 % rejected a true Bradley-Terry law in 38 % of sparse contexts (2 duels a pair, 15 an action). With many
    duels the prior does not matter. Adds `freedom` (independent cycles: 0 means that this context cannot contradict
    Bradley-Terry) and `converged` to the rows.

    duels: a frame with columns context, first, second, preferred; `count_duels` of any other; or wins (X, A, A) or (A,
    A). Raises ValueError for labels or counts that are not whole."""
    counts = _counts(duels)
    wins = counts.wins
    fit = fit_bradley_terry(wins)
    drawn = fit_bradley_terry(wins, ridge=ridge, start=fit.scores).scores
    law = torch.sigmoid(drawn[..., :, None] - drawn[..., None, :])
    simulated = _simulate(wins, law, simulations, seed, "bradley_terry")
    null = fit_bradley_terry(simulated, start=fit.scores).deviance
    null = torch.where(fit.freedom > 0, null, 0.0)
    observed = torch.where(fit.freedom > 0, fit.deviance, 0.0)
    return _judge(counts, observed, null, {"freedom": fit.freedom, "converged": fit.converged})


def transitivity_test(duels: pd.DataFrame | Counts | Tensor, *, simulations: int = 499, seed: int = 0) -> Hypothesis:
    """Test of weak stochastic transitivity: some order of the actions has P(a > b) >= 1/2 for all a above b.

    Statistic per context: the likelihood ratio min over orders of sum over pairs that an order contradicts of 2 n_ab
    KL(frequency || 1/2) (Iverson, Falmagne 1985), found exactly up to 12 actions; beyond, by moving one action at a
    time from the Borda order, in the simulations as well. Bootstrap from the constrained fit (contradicted pairs at
    1/2): the boundary of the hypothesis, so the test is conservative where the truth is not on it. Adds, to the rows,
    the triples compared in full and how many of their frequencies violate weak, moderate and strong transitivity:
    P(a > c) >= 1/2, min or max of P(a > b), P(b > c) whenever both are >= 1/2. Arguments as `bradley_terry_test`."""
    counts = _counts(duels)
    wins = counts.wins.numpy()
    cost = _contradictions(wins)
    observed, order = best_order(cost)
    rank = np.argsort(order, -1)
    law = tabular_mle(counts.wins).numpy()
    # a above b but beaten by it: contradicted, and tied in the constrained fit
    above = rank[:, :, None] < rank[:, None, :]
    contradicted = (above & (law < 0.5)) | (above.transpose(0, 2, 1) & (law > 0.5))
    tied = torch.from_numpy(np.where(contradicted, 0.5, law))
    simulated = _contradictions(_simulate(counts.wins, tied, simulations, seed, "transitivity").numpy())
    null = np.stack([best_order(one)[0] for one in simulated])
    extra = {name: torch.from_numpy(v) for name, v in transitivity_violations(wins).items()}
    return _judge(counts, torch.from_numpy(observed), torch.from_numpy(null), extra)


def transitivity_violations(wins: np.ndarray) -> dict[str, np.ndarray]:
    """Per context (X,): `triples` whose three pairs were compared, and those that violate `weak`, `moderate`, `strong`
    stochastic transitivity of the frequencies (a triple counts once). wins (X, A, A)."""
    P = tabular_mle(torch.from_numpy(wins)).numpy()
    compared = wins + wins.transpose(0, 2, 1) > 0
    full = compared[:, :, :, None] & compared[:, None] & compared[:, :, None, :]  # [a, b, c]
    ab, bc, ac = P[:, :, :, None], P[:, None], P[:, :, None, :]
    chain = full & (ab >= 0.5) & (bc >= 0.5)
    floors = {"weak": 0.5, "moderate": np.minimum(ab, bc), "strong": np.maximum(ab, bc)}
    A = wins.shape[-1]
    a, b, c = np.array([(i, j, k) for i in range(A) for j in range(i) for k in range(j)]).reshape(-1, 3).T
    found = {"triples": full[:, a, b, c].sum(-1)}
    for name, floor in floors.items():
        broken = chain & (ac < floor - 1e-12)
        views = [broken[:, i, j, k] for i, j, k in ((a, b, c), (a, c, b), (b, a, c), (b, c, a), (c, a, b), (c, b, a))]
        found[name] = np.logical_or.reduce(views).sum(-1)
    return found


def best_order(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least costs (N,) and orders (N, A), best action first, where having a above b costs cost[a, b], (N, A, A):
    Kemeny's problem. Exact up to EXACT_ORDERS actions, else a local minimum under moves of one action."""
    N, A = cost.shape[:2]
    if A > EXACT_ORDERS:
        found = [_local_order(one) for one in cost]
        return np.array([value for value, _ in found]), np.stack([order for _, order in found])
    masks = np.arange(2**A)
    member = (masks[:, None] >> np.arange(A)) & 1
    best, last = np.zeros((N, 2**A)), np.zeros((N, 2**A), dtype=np.int8)
    for size in range(1, A + 1):  # the best order of every subset, by which action is its lowest
        sets = masks[member.sum(1) == size]
        below = np.stack([np.flatnonzero(row) for row in member[sets]])  # (sets, size)
        rest = sets[:, None] ^ (1 << below)
        value = best[:, rest] + np.einsum("ska,nask->nsk", member[rest], cost[:, :, below])
        lowest = value.argmin(-1)
        last[:, sets], best[:, sets] = below[np.arange(len(sets)), lowest], value.min(-1)
    order, remaining, rows = np.zeros((N, A), dtype=int), np.full(N, 2**A - 1), np.arange(N)
    for place in reversed(range(A)):
        order[:, place] = last[rows, remaining]
        remaining ^= 1 << order[:, place]
    return best[:, -1], order


def _local_order(cost: np.ndarray) -> tuple[float, np.ndarray]:
    A = len(cost)
    order = np.argsort(cost.sum(1) - cost.sum(0), kind="stable")
    change = cost - cost.T  # what having a above b costs over having it below
    for _ in range(A * A):
        ordered = change[np.ix_(order, order)]
        up = np.triu(ordered, 1).T  # up[i, j < i]: change of having j above i, saved when i moves above j
        down = np.triu(ordered, 1)  # down[i, j > i]
        gains = np.cumsum(up[:, ::-1], 1)[:, ::-1] + np.cumsum(down, 1)
        i, j = np.unravel_index(int(gains.argmax()), gains.shape)
        if gains[i, j] <= 1e-12:
            break
        order = np.insert(np.delete(order, i), j, order[i])
    return float(np.triu(cost[np.ix_(order, order)], 1).sum()), order


class Hodge(NamedTuple):
    """Scores (..., A) of the gradient part, mean 0, and the weighted energies (...) of the gradient and of the cyclic
    rest; share = cyclic / (gradient + cyclic), 0 where both vanish."""

    scores: Tensor
    gradient: Tensor
    cyclic: Tensor
    share: Tensor


def hodge_decomposition(margins: Tensor, weights: Tensor | None = None) -> Hodge:
    """Splits skew margins m[a, b] (..., A, A) into the nearest score differences and what circulates.

    Least squares: scores s minimise sum w_ab (m_ab - (s_a - s_b))^2; the residual is orthogonal, so the energies add up
    to sum over pairs w m^2. On a complete graph of comparisons the rest is all curl (made of three-cycles); with
    missing pairs it holds the harmonic part too. Of P - 1/2 or of its logits, as given; weights (..., A, A), such as
    counts, default to 1. Sampling noise has curl: compare with `bradley_terry_test`. Source: HodgeRank, Jiang, Lim,
    Yao, Ye 2011. Raises ValueError for margins that are not skew."""
    off = float((margins + margins.mT).abs().max())
    if not off <= 1e-9 * max(1.0, float(margins.abs().max())):
        raise ValueError(f"margins: must be skew (m + m' = 0), off by {off:.3g}; give P - 1/2 or logit(P)")
    w = torch.ones_like(margins) if weights is None else weights
    w = w - torch.diag_embed(w.diagonal(dim1=-2, dim2=-1))
    laplacian = torch.diag_embed(w.sum(-1)) - w
    divergence = (w * margins).sum(-1)
    scores = (torch.linalg.pinv(laplacian, hermitian=True) @ divergence[..., None]).squeeze(-1)
    flow = scores[..., :, None] - scores[..., None, :]
    gradient, cyclic = ((w * part.square()).sum((-1, -2)) / 2 for part in (flow, margins - flow))
    total = gradient + cyclic
    return Hodge(scores, gradient, cyclic, torch.where(total > 0, cyclic / total.clamp_min(1e-300), 0.0))


# ------------------------------------------------------------------------------------------------- shared parts


def _counts(duels: pd.DataFrame | Counts | Tensor) -> Counts:
    if isinstance(duels, pd.DataFrame):
        return count_duels(duels)
    if isinstance(duels, Counts):
        return duels
    wins = duels if duels.ndim == 3 else duels[None]
    whole = bool((wins == wins.round()).all()) and bool((wins >= 0).all())
    if wins.ndim != 3 or wins.shape[-1] != wins.shape[-2] or not whole:
        raise ValueError("wins: must be whole numbers >= 0 of shape (A, A) or (X, A, A)")
    names_of = tuple(range(wins.shape[-1]))
    wins = wins.to(torch.float64) - torch.diag_embed(wins.diagonal(dim1=-2, dim2=-1)).to(torch.float64)
    return Counts(wins, tuple(range(len(wins))), (names_of,) * len(wins))


def _simulate(wins: Tensor, law: Tensor, simulations: int, seed: int, purpose: str) -> Tensor:
    """As many duels per pair as there were, won with probability `law` (X, A, A): (simulations, X, A, A)."""
    if simulations < 1:
        raise ValueError(f"simulations: must be at least 1, got {simulations}")
    a, b = np.triu_indices(wins.shape[-1], 1)
    n = (wins + wins.mT).numpy().astype(int)[:, a, b]
    p = law.numpy()[:, a, b].clip(0.0, 1.0)
    drawn = np.zeros((simulations, *wins.shape))
    for s in range(simulations):
        won = generator(seed, s, purpose).binomial(n, p)
        drawn[s][:, a, b], drawn[s][:, b, a] = won, n - won
    return torch.from_numpy(drawn)


def _contradictions(wins: np.ndarray) -> np.ndarray:
    """cost[a, b] of an order that has a above b: 2 n KL(frequency || 1/2) if b won more often, else 0."""
    n = wins + np.swapaxes(wins, -1, -2)
    p = np.divide(wins, n, out=np.full_like(wins, 0.5), where=n > 0)
    q = 1 - p
    entropy = np.where(p > 0, p * np.log(np.where(p > 0, 2 * p, 1.0)), 0.0)
    entropy += np.where(q > 0, q * np.log(np.where(q > 0, 2 * q, 1.0)), 0.0)
    return np.where(p < 0.5, 2 * n * entropy, 0.0)


def _judge(counts: Counts, observed: Tensor, null: Tensor, extra: dict[str, Tensor]) -> Hypothesis:
    """observed (X,), null (simulations, X). Rounding in equal statistics counts as equal."""
    slack = 1e-6 + 1e-9 * observed
    exceed = _p_value(null >= observed - slack, 0)
    total, total_null = float(observed.sum()), null.sum(1)
    pairs = ((counts.wins + counts.wins.mT) > 0).sum((-1, -2)) // 2
    rows: dict[str, Sequence[Hashable] | np.ndarray] = {"context": counts.contexts}
    rows |= {"duels": counts.wins.sum((-1, -2)).long().numpy(), "pairs": pairs.numpy()}
    rows |= {"statistic": observed.numpy(), "p_value": exceed.numpy()}
    rows |= {name: values.numpy() for name, values in extra.items()}
    overall = _p_value(total_null >= total - float(slack.sum()), 0)
    return Hypothesis(total, float(overall), pd.DataFrame(rows))


def _p_value(as_large: Tensor, dim: int) -> Tensor:
    return (1.0 + as_large.sum(dim).to(torch.float64)) / (1 + as_large.shape[dim])

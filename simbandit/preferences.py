"""Preferences estimated from duels, with no reward behind them: bilinear, low-rank, tabular, embedded.

P(a > b | x) = sigma(s(x, a, b)) with a skew score s(x, a, b) = -s(x, b, a). Every table returned here has P + P' = 1 to
the last bit and a diagonal of exactly 1/2. p = d (d - 1) / 2 throughout.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from simbandit.data import Duels
from simbandit.estimators import Fit, Radius, curvature, logistic_mle, width
from simbandit.low_rank import low_rank_mle, truncate_rank
from simbandit.solvers import Local, Solution, minimise, newton_local
from simbandit.types import Contexts, Info, Setting

SLOPE = 0.25
"""The largest slope of sigma: a change of a score changes a probability by at most a quarter of it."""
WEDGE_NUMBERS = 2**22  # wedge features of all pairs beyond 32 MB are taken in chunks of contexts


# ------------------------------------------------------------------------------------------------- bilinear scores


def wedge(a: Tensor, b: Tensor) -> Tensor:
    """a ^ b = (a_i b_j - a_j b_i), i < j, (..., d) -> (..., p): the features of every skew bilinear form, as a' Theta b
    = <theta, a ^ b> where theta are Theta's entries above the diagonal. b ^ a = -(a ^ b) to the last bit."""
    i, j = torch.triu_indices(a.shape[-1], a.shape[-1], 1, device=a.device)
    return a[..., i] * b[..., j] - a[..., j] * b[..., i]


def skew_matrix(theta: Tensor) -> Tensor:
    """Theta (..., d, d), exactly skew, from its entries above the diagonal (..., p). ||Theta||_F = sqrt 2 ||theta||."""
    d = round((1 + math.sqrt(1 + 8 * theta.shape[-1])) / 2)
    i, j = torch.triu_indices(d, d, 1, device=theta.device)
    upper = theta.new_zeros(*theta.shape[:-1], d, d)
    upper[..., i, j] = theta
    return upper - upper.mT


def skew_coordinates(matrix: Tensor) -> Tensor:
    """The entries above the diagonal of a skew matrix: the inverse of `skew_matrix`."""
    i, j = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], 1, device=matrix.device)
    return matrix[..., i, j]


def win_probabilities(scores: Tensor) -> Tensor:
    """sigma(s) of skew scores (..., A, A) with P + P' = 1 exactly: one triangle is the other's complement."""
    upper = torch.sigmoid(scores.triu(1)).triu(1)
    lower = (1 - upper).mT.tril(-1)
    return upper + lower + 0.5 * torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device)


def bilinear_table(features: Tensor, theta: Tensor) -> Tensor:
    """P(a > b | x) = sigma(phi_a' Theta phi_b): features (R, X, A, d), theta (R, p) -> (R, X, A, A)."""
    return win_probabilities(features @ skew_matrix(theta)[:, None] @ features.mT)


def bilinear_mle(
    first: Tensor,
    second: Tensor,
    wins: Tensor,
    count: Tensor,
    *,
    ridge: float = 0.0,
    ball: float | None = None,
    start: Tensor | None = None,
) -> Fit:
    """Maximum likelihood of Theta from counts per distinct pair: a logistic regression on wedge features, so Theta is
    skew whatever the data. first, second (R, U, d): the two actions' features; wins, count (R, U). `ball` bounds
    ||Theta||_F; ridge / 2 ||theta||^2 is added. Fit.theta is (R, p). As `logistic_mle` in everything else.

    Source: the generalised bilinear preference model, 2602.23116."""
    bound = None if ball is None else ball / math.sqrt(2)
    return logistic_mle(wedge(first, second), wins, count, ridge=ridge, ball=bound, start=start)


def wedge_widths(features: Tensor, inverse: Tensor) -> Tensor:
    """||phi_a ^ phi_b||_inverse for all pairs of a context's actions: (R, X, A, d), (R, p, p) -> (R, X, A, A)."""
    R, X, A, _ = features.shape
    i, j = torch.triu_indices(A, A, 1, device=features.device)
    widths = features.new_zeros(R, X, A, A)
    size = max(1, WEDGE_NUMBERS // max(1, R * len(i) * inverse.shape[-1]))
    for low in range(0, X, size):
        part = features[:, low : low + size]
        widths[:, low : low + size, i, j] = width(wedge(part[:, :, i], part[:, :, j]), inverse)
    return widths + widths.mT


# ------------------------------------------------------------------------------------------------- tables


def tabular_mle(wins: Tensor, smoothing: float = 0.0) -> Tensor:
    """P(a > b) = (wins_ab + smoothing / 2) / (wins_ab + wins_ba + smoothing), (..., A, A), exactly skew about 1/2.

    wins[a, b]: how often a beat b. A pair never compared is 1/2. Raises ValueError for negative smoothing or wins."""
    if not (smoothing >= 0 and bool((wins >= 0).all())):
        raise ValueError("wins, smoothing: must be >= 0")
    upper = ((wins + smoothing / 2) / (wins + wins.mT + smoothing).clamp_min(1e-300)).triu(1)
    upper = torch.where(wins + wins.mT + smoothing > 0, upper, 0.5).triu(1)
    return upper + (1 - upper).mT.tril(-1) + 0.5 * torch.eye(wins.shape[-1], dtype=wins.dtype, device=wins.device)


class BradleyTerryFit(NamedTuple):
    """Scores (..., A), centred, and misfit: deviance (...) = 2 (log-likelihood of a free probability per pair - of the
    scores), degrees of freedom (...) = pairs compared - scores identified; converged (...)."""

    scores: Tensor
    deviance: Tensor
    freedom: Tensor
    converged: Tensor


def fit_bradley_terry(wins: Tensor, *, ridge: float = 1e-6, start: Tensor | None = None) -> BradleyTerryFit:
    """Bradley-Terry by maximum likelihood on counts wins[a, b] (..., A, A), and how badly it fits.

    The deviance is 0 iff one score per action reproduces all frequencies; under Bradley-Terry and many duels a pair it
    is chi-squared with `freedom` degrees (one per independent cycle of the graph of comparisons). In a disconnected
    graph scores compare within a component only. ridge: so small that an action that never loses has a finite score."""
    lead, A = wins.shape[:-2], wins.shape[-1]
    flat = wins.reshape(-1, A, A)
    i, j = (flat + flat.mT).sum(0).triu(1).nonzero(as_tuple=True)  # a sparse graph costs its pairs
    won, lost = flat[:, i, j], flat[:, j, i]
    first = wins.new_zeros(len(flat), A) if start is None else start.expand(*lead, A).reshape(-1, A)
    fit = _fit_scores(won, lost, i, j, ridge, first)
    margin = fit.argmin[:, i] - fit.argmin[:, j]
    log = torch.nn.functional.logsigmoid
    n = (won + lost).clamp_min(1.0)
    free = torch.special.xlogy(won, won / n) + torch.special.xlogy(lost, lost / n)
    deviance = 2 * (free - won * log(margin) - lost * log(-margin)).sum(-1)
    freedom = ((won + lost) > 0).sum(-1) - A + components(wins).reshape(-1)
    parts = (fit.argmin, deviance.clamp_min(0.0), freedom, fit.converged)
    return BradleyTerryFit(*(part.reshape((*lead, *part.shape[1:])) for part in parts))


def _fit_scores(won: Tensor, lost: Tensor, i: Tensor, j: Tensor, ridge: float, start: Tensor) -> Solution:
    """Scores (G, A) from the counts (G, U) of the pairs i[u], j[u], by Newton from `start`."""
    total, log = won + lost, torch.nn.functional.logsigmoid
    eye = ridge * torch.eye(start.shape[-1], dtype=won.dtype, device=won.device)

    def local(s: Tensor) -> Local:
        margin = s[:, i] - s[:, j]
        value = ridge / 2 * s.square().sum(-1) - (won * log(margin) + lost * log(-margin)).sum(-1)
        slope = total * torch.sigmoid(margin) - won
        gradient = (ridge * s).index_add(1, i, slope).index_add(1, j, -slope)

        def hessian() -> Tensor:
            weight = won.new_zeros(*s.shape, s.shape[-1])
            weight[:, i, j] = weight[:, j, i] = total * torch.sigmoid(margin) * torch.sigmoid(-margin)
            return torch.diag_embed(weight.sum(-1)) - weight + eye

        return newton_local(value, gradient, hessian, s, None)

    return minimise(local, start, tolerance=1e-9 * total.sum(-1).clamp_min(1.0))


def components(wins: Tensor) -> Tensor:
    """Connected components of the graph of comparisons, (..., A, A) -> (...); an action never shown is one."""
    A = wins.shape[-1]
    reach = ((wins + wins.mT > 0) | torch.eye(A, dtype=torch.bool, device=wins.device)).to(wins.dtype)
    for _ in range(max(1, math.ceil(math.log2(max(2, A))))):
        reach = (reach @ reach > 0).to(wins.dtype)
    return (1 / reach.sum(-1)).sum(-1).round().long()


# ------------------------------------------------------------------------------------------------- running estimates


def finite_pool(setting: Setting, who: str) -> Contexts:
    """The list of contexts. Raises ValueError in a world of fresh ones."""
    if setting.contexts is None:
        raise ValueError(f"world: {who} plans over all pairs of actions and needs a finite world (n_contexts=)")
    return setting.contexts


class PreferenceModel:
    """Running bilinear estimate of a preference from duels. Grows in place; the newest fit is `theta` (R, p).

    `gram` (R, p, p): the sum of psi psi' over duels, psi = phi_a ^ phi_b, without ridge. Refits when the number of
    duels has grown by the fraction `refit_growth` since the last fit (0: at every `observe`). `table()` is of `theta`,
    or where `rank` is given of `theta` truncated to it (low_rank="truncation") or of the maximum of the likelihood
    within it that is found from there (low_rank="likelihood", `low_rank_mle`, where `ball` bounds the start only).
    intercept: append a constant to the features; the class then contains every linear Bradley-Terry model, and the
    plain bilinear one as well. ball: a bound on ||Theta||_F.

    Raises ValueError in a world of fresh contexts, without features, or with one feature (a' Theta b is then 0).
    """

    def __init__(
        self,
        setting: Setting,
        *,
        ridge: float,
        ball: float | None = None,
        rank: int | None = None,
        low_rank: Literal["truncation", "likelihood"] = "truncation",
        intercept: bool = False,
        refit_growth: float = 0.0,
    ):
        pool = finite_pool(setting, "a bilinear preference")
        self.features = pool.features
        if intercept:
            shared = self.features[:1] if self.features.stride(0) == 0 else self.features
            shared = torch.cat([shared, torch.ones_like(shared[..., :1])], -1)
            self.features = shared.expand(setting.replicates, *shared.shape[1:])
        d = self.features.shape[-1]
        if d < 2:
            raise ValueError("world: a skew bilinear form of one feature is 0; give two features or intercept=True")
        R, p = setting.replicates, d * (d - 1) // 2
        self.ridge, self.ball, self.rank, self.low_rank, self.refit_growth = ridge, ball, rank, low_rank, refit_growth
        self.theta = torch.zeros(R, p, dtype=torch.float64, device=setting.device)
        self.gram = torch.zeros(R, p, p, dtype=torch.float64, device=setting.device)
        self.residual = torch.zeros(R, dtype=torch.float64, device=setting.device)
        self.iterations = torch.zeros_like(self.residual)
        self.duels = Duels(R, pool, None, setting.device)
        self.n = self.n_fitted = 0

    def _pairs(self, context: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Features (R, B, d) of both actions (R, B, 2) of duels in contexts (R, B)."""
        replicate = torch.arange(len(context), device=context.device)[:, None]
        first, second = (self.features[replicate, context, actions[..., side]] for side in (0, 1))
        return first, second

    def observe(self, contexts: Contexts, actions: Tensor, feedback: Tensor) -> bool:
        """Records a batch of duels and refits if the schedule says so; returns whether it did."""
        assert contexts.index is not None
        self.duels.add(contexts, actions, feedback)
        psi = wedge(*self._pairs(contexts.index, actions))
        self.gram += psi.mT @ psi
        self.n += feedback.shape[1]
        due = self.n >= (1 + self.refit_growth) * self.n_fitted
        if due:
            self.refit()
        return due

    def refit(self) -> None:
        d, self.n_fitted = self.duels, self.n
        first, second = self._pairs(d.context, d.actions)
        fit = bilinear_mle(first, second, d.wins, d.count, ridge=self.ridge, ball=self.ball, start=self.theta)
        self.theta, self.residual, self.iterations = fit.theta, fit.residual, fit.iterations

    def table(self) -> Tensor:
        """P(a > b | x) over the pool, (R, X, A, A)."""
        theta = self.theta
        if self.rank is not None:
            matrix = skew_matrix(theta)
            if self.low_rank == "likelihood" and self.n:
                first, second = self._pairs(self.duels.context, self.duels.actions)
                counts = self.duels.wins, self.duels.count
                fit = low_rank_mle(first, second, *counts, self.rank, ridge=self.ridge, start=matrix)
                matrix, self.residual, self.iterations = fit.matrix, fit.residual, fit.iterations
            theta = skew_coordinates(truncate_rank(matrix, self.rank))
        return bilinear_table(self.features, theta)

    def inverse(self, ridge: float, scale: float = 1.0) -> Tensor:
        """(ridge I + scale gram)^-1, (R, p, p)."""
        eye = torch.eye(self.theta.shape[-1], dtype=torch.float64, device=self.theta.device)
        return torch.cholesky_inverse(torch.linalg.cholesky(ridge * eye + scale * self.gram))

    def info(self, radius: float | None = None) -> Info:
        return Info(fit_residual=self.residual, fit_iterations=self.iterations, radius=radius)


class TabularPreferences:
    """Running table of counts, wins[x, a, b] (R, X, A, A), for worlds without features. Grows in place.

    `table()` is the smoothed frequency; `widths()` is 1 / (2 sqrt(count + smoothing)), the largest standard deviation
    of such a frequency, 0 on the diagonal. refit_growth: `observe` returns whether the duels have grown by that
    fraction. Memory X A^2 per replicate. Raises ValueError in a world of fresh contexts."""

    def __init__(self, setting: Setting, *, smoothing: float, refit_growth: float = 0.0):
        R, X = finite_pool(setting, "a table of preferences").shape
        A = setting.n_actions
        self.smoothing, self.refit_growth = smoothing, refit_growth
        self.wins = torch.zeros(R, X, A, A, dtype=torch.float64, device=setting.device)
        self.n = self.n_fitted = 0

    def observe(self, contexts: Contexts, actions: Tensor, feedback: Tensor) -> bool:
        assert contexts.index is not None
        replicate = torch.arange(len(feedback), device=feedback.device)[:, None].expand(feedback.shape)
        a, b = actions[..., 0], actions[..., 1]
        said = (a != b).to(feedback.dtype)
        self.wins.index_put_((replicate, contexts.index, a, b), said * feedback, accumulate=True)
        self.wins.index_put_((replicate, contexts.index, b, a), said * (1 - feedback), accumulate=True)
        self.n += feedback.shape[1]
        due = self.n >= (1 + self.refit_growth) * self.n_fitted
        if due:
            self.n_fitted = self.n
        return due

    def table(self) -> Tensor:
        return tabular_mle(self.wins, self.smoothing)

    def widths(self) -> Tensor:
        half = 0.5 / (self.wins + self.wins.mT + self.smoothing).sqrt()
        return half - torch.diag_embed(half.diagonal(dim1=-2, dim2=-1))


def bilinear_radius(radius: Radius, model: PreferenceModel, delta: float = 0.05) -> float:
    """Radius of ||theta_hat - theta*|| in the norm of ridge I + sum psi psi'.

    "theory": sqrt((p + log 1/delta) / gamma^2 + ridge ||theta*||^2), gamma the smallest slope of sigma at scores up to
    ||theta*|| max ||psi||, with the unknown absolute constant set to 1 (as `confidence_radius`). "tuned": 1."""
    if not isinstance(radius, str):
        return float(radius)
    if radius == "tuned":
        return 1.0
    if model.ball is None:
        raise ValueError("radius: 'theory' needs a bound on the preference's scores; give `ball`, or use 'tuned'")
    bound = model.ball / math.sqrt(2)
    longest = float(model.features.norm(dim=-1).max()) ** 2  # ||a ^ b|| <= ||a|| ||b||
    freedom = model.theta.shape[-1] + math.log(1 / delta)
    return math.sqrt(freedom / curvature(bound * longest) ** 2 + model.ridge * bound**2)

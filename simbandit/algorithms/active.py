"""Active preference collection: which pair of which context to ask about, to end with a good policy everywhere.

The measure is simple regret: `worst_argmax_regret` (max over contexts) and `argmax_regret` (mean) against queries.
These methods choose contexts too: `simulate` hands the drawn contexts to `ask`, which returns the ones that are asked
about. `policy(state)`: greedy in the Bradley-Terry MLE of all answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from simbandit import design
from simbandit.algorithms.checks import check
from simbandit.algorithms.choosing import GreedyPolicy, choose, choose_pair
from simbandit.algorithms.dueling import DuelState, Matrix, observe
from simbandit.algorithms.dueling import start as start_duels
from simbandit.draws import Round
from simbandit.estimators import pair_widths, rank_one_inverse
from simbandit.least_squares import linear
from simbandit.types import Contexts, Feedback, Info, Policy, Setting

REPEATED = 1e6  # a pair already in this batch comes after every other


@dataclass
class _State:
    duels: DuelState
    near: Tensor | None = (
        None  # coreset: distance (R, X, A, A) of every difference to the nearest one asked, 0 included
    )
    planned: Tensor | None = None  # (R, B, 2): the pairs that go with the contexts just asked for


@dataclass(frozen=True)
class Active:
    """APO and its baselines: ask about the most informative pair, the design updated inside a batch.

    rule: "width" (registry name `apo`; Das et al. 2024, 2402.10500, Algorithm 1): the context and pair of the largest
        ||phi_a - phi_b|| in the inverse of V = matrix_ridge I + sum z z' (matrix="gram", what the released code runs)
        or of the Hessian at the MLE ("hessian", the theory). "uncertainty": the smallest |<theta, z>|, a label nearest
        to a coin flip. "bald" (Houlsby et al. 2011, 1112.5745, equation (4)): the largest mutual information between
        label and theta under the Laplace posterior, h(Phi(m / sqrt(1 + s^2))) - C exp(-m^2 / (2 (s^2 + C^2))) /
        sqrt(s^2 + C^2) in bits, C^2 = pi log(2) / 2, the logistic link matched to the normal one by m, s -> sqrt(pi /
        8) m, s. "coreset" (Sener and Savarese 2018): the difference farthest from all that were asked (k-centre greedy,
        up to sign).
    contexts: "chosen" over the whole finite world, or "drawn": the best pair of each context that the world draws, the
        ablation by which the paper shows that uniform contexts can cost a constant gap.
    Guarantee (APO, Theorem 3), Bradley-Terry labels, ||theta*|| <= S, finitely many contexts: worst-context simple
    regret O~(d / sqrt(T)) up to a non-linearity constant e^S; the lower bound is Omega(d / sqrt(T)). Deviations: within
    a batch V takes each chosen pair at once (the released code ranks the pool once and takes near-duplicates); refits
    by `refit_growth`. Complexity O(X A (d^2 + A d)) per query. Raises ValueError for a world without features, and for
    fresh contexts with contexts="chosen" or "coreset".
    """

    rule: Literal["width", "uncertainty", "bald", "coreset"] = "width"
    matrix: Matrix = "gram"
    contexts: Literal["chosen", "drawn"] = "chosen"
    ridge: float = 0.1
    matrix_ridge: float = 1.0
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "matrix_ridge"))

    @property
    def consistent(self) -> bool:
        return False  # greedy in the unregularised reward

    def init(self, setting: Setting) -> _State:
        if setting.contexts is None and (self.contexts == "chosen" or self.rule == "coreset"):
            raise ValueError(f"world: {self.rule} chooses among all contexts and needs a finite world (n_contexts=)")
        duels = start_duels(
            setting, ridge=self.ridge, matrix_ridge=self.matrix_ridge, ball=self.ball, refit_growth=self.refit_growth
        )
        near = None
        if self.rule == "coreset":
            assert setting.contexts is not None
            near = _distances(setting.contexts.features)
        return _State(duels, near)

    def ask(self, state: _State, contexts: Contexts, draws: Round) -> Contexts:
        """The contexts of this round's questions; the pairs are remembered for `select`."""
        pool = state.duels.setting.contexts
        if self.contexts == "drawn" or pool is None:
            return contexts
        B, A = contexts.shape[1], pool.n_actions
        inverse, near = state.duels.inverse.clone(), None if state.near is None else state.near.clone()
        repeated = pool.features.new_zeros(*pool.shape, A, A)
        index, pairs = [], []
        absent = pool.ref_log_probs == -torch.inf
        both = torch.where(absent[..., :, None] | absent[..., None, :], -torch.inf, 0.0).flatten(1)
        everything = Contexts(ref_log_probs=both[:, None])  # one "context" whose actions are all contexts' pairs
        for b in range(B):
            scores = self._scores(state, pool.features, inverse, near) - REPEATED * repeated
            cell = choose(scores.flatten(1)[:, None], everything, draws.uniform("ties", B)[:, b : b + 1])[:, 0]
            x, i, j = cell // (A * A), cell // A % A, cell % A
            index.append(x)
            pairs.append(torch.stack([i, j], dim=-1))
            asked = Contexts(index=x[:, None], pool=pool)
            self._take(state, asked, pairs[-1][:, None], pool, inverse, near)
            replicate = torch.arange(len(x), device=x.device)
            repeated[replicate, x, i, j] += 1
            repeated[replicate, x, j, i] += 1
        state.planned = torch.stack(pairs, dim=1)
        return Contexts(index=torch.stack(index, dim=1), pool=pool)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        if state.planned is not None:
            return state.planned
        B, pairs = contexts.shape[1], []
        inverse, near = state.duels.inverse.clone(), None if state.near is None else state.near.clone()
        for b in range(B):
            one = _column(contexts, b)
            held = near if near is None else one.rows(near)
            scores = self._scores(state, one.features, inverse, held)
            pairs.append(choose_pair(scores, one, draws.uniform("ties", B)[:, b : b + 1]))
            self._take(state, one, pairs[-1], state.duels.setting.contexts, inverse, near)
        return torch.cat(pairs, dim=1)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        state.planned = None
        if state.near is not None:
            assert state.duels.setting.contexts is not None
            _approach(state.near, state.duels.setting.contexts.features, contexts, actions)
        matrix = "hessian" if self.rule == "bald" else self.matrix
        observe(state.duels, contexts, actions, feedback, matrix, self.matrix_ridge)
        return state, state.duels.model.info()

    def policy(self, state: _State) -> Policy:
        return GreedyPolicy(state.duels.model.theta)

    def _scores(self, state: _State, phi: Tensor, inverse: Tensor, near: Tensor | None) -> Tensor:
        """(R, N, A, A) of all ordered pairs, equal for both orders; an action with itself comes last."""
        if self.rule == "coreset":
            assert near is not None
            scores = near
        elif self.rule == "width":
            scores = pair_widths(phi, inverse)
        else:
            mu = linear(phi, state.duels.model.theta)
            margin = (mu[..., :, None] - mu[..., None, :]).abs()
            scores = -margin if self.rule == "uncertainty" else _bald(margin, pair_widths(phi, inverse))
        same = torch.eye(phi.shape[-2], dtype=torch.bool, device=phi.device)
        return scores.masked_fill(same, -2 * REPEATED)

    def _take(
        self,
        state: _State,
        contexts: Contexts,
        pair: Tensor,
        pool: Contexts | None,
        inverse: Tensor,
        near: Tensor | None,
    ) -> None:
        """The chosen pair (R, 1, 2) enters the batch's own copy of the design."""
        phi = contexts.features_of(pair)[:, 0]
        z = phi[:, 0] - phi[:, 1]
        if self.matrix == "hessian" or self.rule == "bald":
            p = torch.sigmoid((z * state.duels.model.theta).sum(-1, keepdim=True))
            z = z * (p * (1 - p)).sqrt()
        rank_one_inverse(inverse, z)
        if near is not None:
            assert pool is not None
            _approach(near, pool.features, contexts, pair)


def _column(contexts: Contexts, b: int) -> Contexts:
    if contexts.index is not None and contexts.pool is not None:
        return Contexts(index=contexts.index[:, b : b + 1], pool=contexts.pool)
    return Contexts(features=contexts.features[:, b : b + 1], ref_log_probs=contexts.ref_log_probs[:, b : b + 1])


def _bald(margin: Tensor, deviation: Tensor) -> Tensor:
    """Mutual information, in bits, of a label and theta: margin and posterior deviation of <theta, z>."""
    probit = math.sqrt(math.pi / 8)
    m, s2 = probit * margin, (probit * deviation).square()
    p = torch.special.ndtr(m / (1 + s2).sqrt())
    total = -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / math.log(2)
    c2 = math.pi * math.log(2) / 2
    return total - math.sqrt(c2) * torch.exp(-m.square() / (2 * (s2 + c2))) / (s2 + c2).sqrt()


def _distances(phi: Tensor) -> Tensor:
    """||phi_a - phi_b|| (R, X, A, A) by the Gram trick."""
    gram = phi @ phi.mT
    norms = gram.diagonal(dim1=-2, dim2=-1)
    return _root(norms[..., :, None] + norms[..., None, :], 2 * gram)


def _approach(near: Tensor, phi: Tensor, contexts: Contexts, actions: Tensor) -> None:
    """near = min(near, distance to +- the differences asked), in place."""
    asked = contexts.features_of(actions)
    squares = _distances(phi).square()
    for b in range(actions.shape[1]):
        q = asked[:, b, 0] - asked[:, b, 1]
        along = linear(phi, q)
        product = (along[..., :, None] - along[..., None, :]).abs()
        distance = _root(squares + q.square().sum(-1)[:, None, None, None], 2 * product)
        torch.minimum(near, distance, out=near)


def _root(squares: Tensor, product: Tensor) -> Tensor:
    """sqrt(squares - product), exactly 0 where only rounding is left: pairs already asked are then tied."""
    rest = squares - product
    return rest.masked_fill(rest <= 1e-12 * squares, 0.0).sqrt()


# ------------------------------------------------------------------------------------------------- one-shot design


@dataclass
class _Plan:
    duels: DuelState
    cells: Tensor = field(repr=False)  # (R, T B): context and pair of every question, in the order they are asked
    planned: Tensor | None = None


@dataclass(frozen=True)
class DOptimal:
    """One-shot D-optimal design over all contexts' pairs, fixed before the first answer: ODPO's plan, then the MLE.

    weights = `design.d_optimal` of the differences phi(x, a) - phi(x, b), rounded to T questions by `design.apportion`
    and spread evenly over the rounds. Source: 2410.17055 (no experiments seen); by Kiefer and Wolfowitz every width is
    at most sqrt(d / T), hence worst-context simple regret O~(e^S d / sqrt(T)) for Bradley-Terry labels, ||theta*|| <=
    S. tolerance: of the design's certificate. It is the G-optimal design too. Directions that no pair spans are left
    out without a warning: no choice among offered actions depends on them. Deviations: a ridge and the world's ball in
    the MLE instead of its projection; offline data do not change the plan. `policy`: greedy. Complexity: one design per
    replicate in `init` (one for all where they share features), each linear in X A^2. Raises ValueError for a world of
    fresh contexts or without features.
    """

    tolerance: float = 0.01
    ridge: float = 0.1
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "tolerance"))
        if self.tolerance >= 1:
            raise ValueError(f"tolerance: must be in (0, 1), got {self.tolerance}")

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _Plan:
        pool = setting.contexts
        if pool is None:
            raise ValueError("world: a design over all contexts needs a finite world (n_contexts=)")
        duels = start_duels(setting, ridge=self.ridge, matrix_ridge=1.0, ball=self.ball, refit_growth=self.refit_growth)
        phi, ref = pool.features, pool.ref_log_probs
        shared = phi.stride(0) == ref.stride(0) == 0
        rows = 1 if shared else setting.replicates
        n = setting.rounds * setting.batch_size
        plans = [_questions(phi[r].cpu().numpy(), ref[r].cpu().numpy(), n, self.tolerance) for r in range(rows)]
        cells = torch.from_numpy(np.stack(plans)).to(setting.device).expand(setting.replicates, -1)
        return _Plan(duels, cells)

    def ask(self, state: _Plan, contexts: Contexts, draws: Round) -> Contexts:
        """This round's share of the plan."""
        B, A = contexts.shape[1], contexts.n_actions
        cell = state.cells[:, draws.t * B : (draws.t + 1) * B]
        state.planned = torch.stack([cell // A % A, cell % A], dim=-1)
        return Contexts(index=cell // (A * A), pool=state.duels.setting.contexts)

    def select(self, state: _Plan, contexts: Contexts, draws: Round) -> Tensor:
        del contexts, draws
        assert state.planned is not None
        return state.planned

    def update(
        self, state: _Plan, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_Plan, Info]:
        del draws
        observe(state.duels, contexts, actions, feedback, "gram", 1.0)
        return state, state.duels.model.info()

    def policy(self, state: _Plan) -> Policy:
        return GreedyPolicy(state.duels.model.theta)


def _questions(phi: np.ndarray, ref: np.ndarray, n: int, tolerance: float) -> np.ndarray:
    """n cells (x A + a) A + b: the k-th of a pair's n_j questions stands at (k + 1/2) / n_j of the way."""
    X, A, d = phi.shape
    first, second = np.triu_indices(A, 1)
    z = (phi[:, first] - phi[:, second]).reshape(-1, d)
    offered = np.isfinite(ref)
    both = (offered[:, first] & offered[:, second]).ravel()
    cells = ((np.arange(X)[:, None] * A + first) * A + second).ravel()
    useful = both & (np.linalg.norm(z, axis=1) > 0)
    if not useful.any():  # nothing can be learnt: each context's most offered action against itself
        best = ref.argmax(1)
        return ((np.arange(X) * A + best) * A + best)[np.arange(n) % X]
    weights = design.d_optimal(z[useful], tolerance=tolerance, warn=False).weights
    times = design.apportion(weights, n)
    position = np.concatenate([(np.arange(k) + 0.5) / k for k in times if k])
    return np.repeat(cells[useful], times)[np.argsort(position, kind="stable")]

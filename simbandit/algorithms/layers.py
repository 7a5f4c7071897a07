"""VACDB: variance-aware dueling by layers of precision, each with its own weighted likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.algorithms.choosing import GreedyPolicy, choose_pair
from simbandit.data import Duels
from simbandit.draws import Round
from simbandit.estimators import RewardModel, logistic_mle, pair_widths, rank_one_inverse
from simbandit.least_squares import linear
from simbandit.types import Contexts, Feedback, Info, Policy, Setting


@dataclass
class _State:
    setting: Setting
    duels: Duels  # one ensemble member per layer: counts weighted by w^2
    thetas: Tensor  # (layers, R, d)
    inverses: Tensor  # (layers, R, d, d)
    model: RewardModel  # plain MLE on all duels: the output


class Walk(NamedTuple):
    """Where each context's descent through the layers ended: `layer` (R, B), 0 ... layers - 1, or `layers` where all
    widths are small; and the scores (R, B, A, A) of pairs there."""

    layer: Tensor
    scores: Tensor


@dataclass(frozen=True)
class VACDB:
    """VACDB: act in the first layer l whose widths are not yet all below 2^-l, on such a pair; else eliminate and
    descend.

    Di et al. 2023 (2310.00968, ICLR 2024), Algorithm 1. Layer l = 1 ... `layers` keeps Sigma_l = 2^-2l I + sum w^2 z z'
    and the weighted MLE theta_l of its own duels, weights w = 2^-l / ||z||_{Sigma_l^-1} (so that every duel of a layer
    counts alike). Of a context's actions A_l (all offered ones at l = 1):

        all widths <= 2^-layers:  argmax mu_i + mu_j + radius_l width_ij           (such duels enter no layer)
        all widths <= 2^-l:       A_{l+1} = {i : mu_i >= max mu - 2^-l radius_l}, go on in layer l + 1
        otherwise:                a pair with width > 2^-l, uniformly at random

    radius: a number (beta of every layer), "tuned" (1), or "code" = sqrt(d log T) / 4 divided by the world's ||theta*||
    bound, what the released code runs. Guarantee (Theorem 5.1): `summed_regret` O~(d sqrt(sum_t sigma_t^2) + d),
    sigma_t^2 = p (1 - p) the labels' variance: near-certain labels cost less. Deviations: tuned radius instead of
    theirs (their equation (4.3), with empirical variances); the world's ball; refits when the data have grown by
    `refit_growth`; the default 5 layers (theirs log2(1 / alpha)). Our earlier runs found the released code's VACDB
    behind its own baselines. `policy`: greedy in the plain MLE on all duels. Complexity: layers x (A^2 d + A d^2) per
    context, layers + 1 fits. Raises ValueError for a world without features.
    """

    layers: int = 5
    radius: Literal["tuned", "code"] | float = "tuned"
    ridge: float = 0.1
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball",))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        model = RewardModel(setting, ridge=self.ridge, ball=self.ball, refit_growth=self.refit_growth)
        R, d, L = *model.theta.shape, self.layers
        eye = torch.eye(d, dtype=torch.float64, device=setting.device).expand(R, d, d)
        inverses = torch.stack([eye * 4.0 ** (layer + 1) for layer in range(L)])
        duels = Duels(R, setting.contexts, d, setting.device, members=L)
        return _State(setting, duels, torch.zeros(L, R, d).to(eye), inverses, model)

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        walk = self._walk(state, contexts)
        return choose_pair(walk.scores, contexts, draws.uniform("ties", contexts.shape[1]))

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        layer = self._walk(state, contexts).layer
        phi = contexts.features_of(actions)
        z = phi[:, :, 0] - phi[:, :, 1]
        weights = z.new_zeros(*layer.shape, self.layers)
        for i in range(self.layers):
            width = ((z @ state.inverses[i]) * z).sum(-1).clamp_min(0.0).sqrt()
            w = (2.0 ** -(i + 1) / width.clamp_min(1e-300)).clamp_max(1.0) * (layer == i) * (width > 0)
            weights[..., i] = w.square()
            for b in range(z.shape[1]):
                rank_one_inverse(state.inverses[i], w[:, b, None] * z[:, b])
        state.duels.add(contexts, actions, feedback, weights)
        if state.model.observe(contexts, actions, feedback):
            self._refit(state)
        return state, state.model.info(self._radius(state.setting))

    def policy(self, state: _State) -> Policy:
        return GreedyPolicy(state.model.theta)

    def _refit(self, state: _State) -> None:
        d, ball = state.duels, state.model.ball
        fits = [
            logistic_mle(
                d.differences,
                d.member_wins[..., i],
                d.member_count[..., i],
                ridge=4.0 ** -(i + 1),
                ball=ball,
                start=state.thetas[i],
            ).theta
            for i in range(self.layers)
        ]
        state.thetas = torch.stack(fits)

    def _walk(self, state: _State, contexts: Contexts) -> Walk:
        phi, beta = contexts.features, self._radius(state.setting)
        alive = contexts.ref_log_probs > -torch.inf
        going = torch.ones(alive.shape[:2], dtype=torch.bool, device=alive.device)
        layer = torch.zeros_like(going, dtype=torch.int64)
        scores = phi.new_full((*alive.shape, alive.shape[-1]), -1.0)
        for i in range(self.layers):
            mu, widths = linear(phi, state.thetas[i]), pair_widths(phi, state.inverses[i])
            pairs = alive[..., :, None] & alive[..., None, :]
            widest = torch.where(pairs, widths, 0.0).amax((-1, -2))
            settled = widest <= 2.0**-self.layers  # so in the last layer a context either settles or explores
            explores = widest > 2.0 ** -(i + 1)
            exploit = torch.where(pairs, mu[..., :, None] + mu[..., None, :] + beta * widths, -torch.inf)
            explore = torch.where(pairs & (widths > 2.0 ** -(i + 1)), 1.0, -1.0)  # ties are broken uniformly
            here = going & (settled | explores)
            chosen = torch.where(explores[..., None, None], explore, exploit)
            scores = torch.where(here[..., None, None], chosen, scores)
            layer = torch.where(here, torch.where(explores, i, self.layers), layer)
            going = going & ~here
            best = mu.masked_fill(~alive, -torch.inf).amax(-1, keepdim=True)
            alive = alive & (~going[..., None] | (mu >= best - 2.0 ** -(i + 1) * beta))
        return Walk(layer, scores)

    def _radius(self, setting: Setting) -> float:
        if not isinstance(self.radius, str):
            return self.radius
        if self.radius == "tuned":
            return 1.0
        assert setting.dim is not None
        scale = setting.theta_bound or 1.0
        return math.sqrt(setting.dim * math.log(max(2, setting.rounds * setting.batch_size))) / 4 / scale

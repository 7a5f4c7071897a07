"""Feel-good Thompson sampling for contextual duels: two posterior draws, one for each side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simbandit.algorithms.bandits import norm_bound
from simbandit.algorithms.checks import check
from simbandit.algorithms.choosing import GreedyPolicy, choose
from simbandit.algorithms.dueling import hessian_inverse
from simbandit.draws import Round
from simbandit.estimators import RewardModel
from simbandit.least_squares import linear
from simbandit.types import Contexts, Feedback, Info, Policy, Setting


@dataclass
class _State:
    setting: Setting
    model: RewardModel
    root: Tensor  # (R, d, d), root root' = the Laplace covariance
    push: Tensor  # (R, 2, d): gradient of the feel-good sum of either side
    chain: Tensor  # (R, 2, d): the samples of the Langevin chains


@dataclass(frozen=True)
class FGTS:
    """FGTS.CDB: theta^1, theta^2 drawn independently from two tilted posteriors, each side plays its own argmax.

    Li, Zhao, Gu 2024 (2404.06013, ICML 2024), Algorithm 1: theta^j ~ p_0(theta) exp(- sum_i L^j_i), with label y = +-1,

        L^j_i(theta) = eta log(1 + exp(-y_i <theta, z_i>)) - mu max_a <theta, phi_i(a) - phi_i(a_i^{3-j})>.

    sampler: "laplace", the Gaussian around the mode of prior and tempered likelihood (the MLE with ridge / eta), with
        precision eta x Hessian + ridge, shifted by one Newton step of the feel-good term: exact up to the likelihood's
        skewness; or "sgld", `steps` Langevin steps a round on the full gradient from the last sample, theta -= e grad
        U, plus sqrt(2 e) times noise, e = step_size / trace of a bound on the Hessian of U.
    eta: of the likelihood (their Theorem 5.2 takes 1/4, the default; 1 is the posterior). mu: of the feel-good term,
        None is 1 / (10 e^S sqrt(T)), S the bound on ||theta*||. Prior N(0, I / ridge).
    Guarantee (Theorem 5.2), ||theta*|| <= S: expected `summed_regret` O~(d sqrt(T)). Deviations: the maximiser of an
    earlier round's feel-good term is that of the sample of then, so that a round costs O(d^2) and not O(t); one pair
    of draws a round for all contexts of a batch; the Langevin chain starts at 0; refits by `refit_growth`. `policy`:
    greedy in that MLE. Raises ValueError for a world without features, or without a bound on theta* where mu is None.
    """

    sampler: Literal["laplace", "sgld"] = "laplace"
    eta: float = 0.25
    mu: float | None = None
    ridge: float = 1.0
    steps: int = 10
    step_size: float = 0.5
    ball: float | None = None
    refit_growth: float = 0.01

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self, positive=("ball", "ridge", "eta"))

    @property
    def consistent(self) -> bool:
        return False

    def init(self, setting: Setting) -> _State:
        self._feel_good(setting)
        ridge = self.ridge / self.eta
        model = RewardModel(setting, ridge=ridge, ball=self.ball, refit_growth=self.refit_growth)
        R, d = model.theta.shape
        root = torch.eye(d, dtype=torch.float64, device=setting.device).expand(R, d, d) / math.sqrt(self.ridge)
        zeros = root.new_zeros(R, 2, d)
        return _State(setting, model, root, zeros, zeros.clone())

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        B, phi = contexts.shape[1], contexts.features
        samples = self._samples(state, draws)
        ties = ("ties", "ties/second")
        sides = [choose(linear(phi, samples[:, j]), contexts, draws.uniform(ties[j], B)) for j in (0, 1)]
        return torch.stack(sides, dim=-1)

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        model, mu = state.model, self._feel_good(state.setting)
        samples, played = self._samples(state, draws), contexts.features_of(actions)
        refitted = model.observe(contexts, actions, feedback)
        push = []
        for j in (0, 1):
            best = GreedyPolicy(samples[:, j]).log_probs(contexts).exp()
            top = torch.einsum("rba,rbad->rd", best, contexts.features)
            push.append(mu * (top - played[:, :, 1 - j].sum(1)))
        state.push = state.push + torch.stack(push, dim=1)
        if refitted and self.sampler == "laplace":
            covariance = hessian_inverse(model, model.ridge) / self.eta
            state.root = torch.linalg.cholesky(covariance)
        if self.sampler == "sgld":
            state.chain = self._langevin(state, draws)
        return state, model.info()

    def policy(self, state: _State) -> Policy:
        return GreedyPolicy(state.model.theta)

    def _samples(self, state: _State, draws: Round) -> Tensor:
        """theta^1 and theta^2, (R, 2, d). The same all through a round, whenever asked."""
        if self.sampler == "sgld":
            return state.chain
        shift = state.push @ state.root @ state.root.mT
        normals = draws.normal("posterior", 2, state.push.shape[-1])
        return state.model.theta[:, None] + shift + normals @ state.root.mT

    def _langevin(self, state: _State, draws: Round) -> Tensor:
        duels, theta = state.model.duels, state.chain
        assert duels is not None
        z, count, wins = duels.differences, duels.count, duels.wins
        d = theta.shape[-1]
        trace = d * self.ridge + self.eta / 4 * (count * z.square().sum(-1)).sum(-1)
        step = (self.step_size / trace)[:, None, None]
        normals = draws.normal("langevin", self.steps, 2, d)
        for i in range(self.steps):
            p = torch.sigmoid(theta @ z.mT)  # (R, 2, U)
            gradient = self.eta * ((count[:, None] * p - wins[:, None]) @ z) + self.ridge * theta - state.push
            theta = theta - step * gradient + (2 * step).sqrt() * normals[:, i]
        return theta

    def _feel_good(self, setting: Setting) -> float:
        if self.mu is not None:
            return self.mu
        return 1 / (10 * math.exp(norm_bound(setting)) * math.sqrt(setting.rounds * setting.batch_size))

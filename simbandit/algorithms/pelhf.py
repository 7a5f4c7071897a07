"""Pessimistic equilibrium learning from logged duels, under general preferences.

Source: Ye, Xiong, Zhang, Dong, Jiang, Zhang 2024 (2402.07314), offline section. Their 1 / eta is `kl_coef`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from simbandit.algorithms.checks import check
from simbandit.draws import Round
from simbandit.estimators import Radius
from simbandit.policies import Reference, Tabular, gibbs
from simbandit.preferences import SLOPE, PreferenceModel, bilinear_radius, wedge, wedge_widths
from simbandit.solvers import Local, Proposal, minimise, newton_local
from simbandit.types import Contexts, Feedback, Info, Policy, Setting
from simbandit.zero_sum import solve_zero_sum

CERTIFIED = 1e-3  # of a win probability: a plan known to be no better than this is announced


@dataclass
class _State:
    setting: Setting
    model: PreferenceModel
    policy: Policy


@dataclass(frozen=True)
class PELHF:
    """Pessimistic equilibrium learning from human feedback: the policy with the best guaranteed game, from duels alone.

    Game: J_P(pi1, pi2) = E_x[pi1' P pi2] - kl_coef KL(pi1 || pi_ref) + kl_coef KL(pi2 || pi_ref). With P_hat the
    maximum-likelihood bilinear preference, psi(x, a, b) = phi_a ^ phi_b and V = ridge I + sum psi psi' over duels,

        option "version_space": argmax_pi1 min_pi2 min over P in V of J_P(pi1, pi2), P = P_hat + <delta, psi> / 4,
            ||delta||_V <= radius
        option "bonus": argmax_pi1 min_pi2 J of the table max(0, P_hat - Gamma), Gamma = radius ||psi||_{V^-1} / 4

    Guarantee (Theorem 1, version space): w.p. 1 - delta, J(pi*, pi*) - min_pi2 J(pi_hat, pi2) <= 4 beta sqrt(C / n), C
    the coverage of the pairs (pi*, pi2) by the data: of one policy against all, not of all pairs. Up to constants the
    bonus form bounds the same gap by E Gamma(pi*, pi2). Gamma is the worst deviation at one pair within the version
    space, whose rectangular hull the bonus form faces: its guaranteed value is never larger (before the cap at 0).

    What is exact: the bonus form is a game per context, solved to 1e-13 / kl_coef. The version space is coupled across
    contexts and its inner minimum is not convex: `robust_equilibrium` returns a policy with a certified bound on how
    much guaranteed value it gives away, and a UserWarning says so where that exceeds 1e-3. Deviations: |P - P_hat| <=
    |<theta - theta_hat, psi>| / 4 since 1/4 is sigma's largest slope: exact as a bound at each pair (hence for the
    bonus form), and for the link 1/2 + z / 4 as a set; members of the version space may leave [0, 1]; a ridge in the
    likelihood. radius: a number, "tuned" (1), or "theory" (needs `ball`; see `bilinear_radius`). ball: bound on
    ||Theta||_F. intercept: see `PreferenceModel`.
    Complexity: one MLE, then O(X A^2 p^2) for the widths and O(X A^3) a Newton step (bonus); O(X A p^2) per inner
    Newton step and cut (version space). Raises ValueError for worlds of fresh contexts or without features.
    """

    option: Literal["bonus", "version_space"] = "bonus"
    radius: Radius = "tuned"
    ridge: float = 0.1
    ball: float | None = None
    intercept: bool = False

    feedbacks: ClassVar[tuple[Feedback, ...]] = ("preference",)
    needs_features: ClassVar[bool] = True
    offline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check(self, positive=("ball", "ridge"))

    @property
    def consistent(self) -> bool:
        return False  # for the Nash policy: under Bradley-Terry labels it is not the optimum of the reward

    def init(self, setting: Setting) -> _State:
        model = PreferenceModel(setting, ridge=self.ridge, ball=self.ball, intercept=self.intercept)
        return _State(setting, model, Reference())

    def select(self, state: _State, contexts: Contexts, draws: Round) -> Tensor:
        del state, contexts, draws
        raise TypeError("an offline algorithm learns from logged data and selects nothing")

    def update(
        self, state: _State, contexts: Contexts, actions: Tensor, feedback: Tensor, draws: Round
    ) -> tuple[_State, Info]:
        del draws
        model, pool, kl_coef = state.model, state.setting.contexts, state.setting.kl_coef
        assert pool is not None
        model.observe(contexts, actions, feedback)
        radius, inverse, ref = bilinear_radius(self.radius, model), model.inverse(self.ridge), pool.ref_log_probs
        if self.option == "bonus":
            pessimistic = (model.table() - SLOPE * radius * wedge_widths(model.features, inverse)).clamp_min(0.0)
            saddle = solve_zero_sum(pessimistic, ref, ref, kl_coef)
            if not bool(saddle.converged.all()):
                raise RuntimeError(f"pelhf: {int((~saddle.converged).sum())} games did not converge")
            state.policy = Tabular(saddle.first)
            return state, model.info(radius)
        weights = ref.new_full(ref.shape[:2], 1 / ref.shape[1]) if pool.weights is None else pool.weights
        ellipsoid = SLOPE * radius * torch.linalg.cholesky(inverse)
        robust = robust_equilibrium(model.table(), model.features, ellipsoid, ref, weights, kl_coef)
        loose = float((robust.upper - robust.lower).max())
        if loose > CERTIFIED:
            warnings.warn(
                f"pelhf: the version-space plan is certified to {loose:.1e} of guaranteed value only, not "
                f"{CERTIFIED:g}; a smaller radius, more duels or a larger kl_coef tightens it",
                UserWarning,
                stacklevel=2,
            )
        state.policy = Tabular(robust.log_probs)
        return state, model.info(radius)

    def policy(self, state: _State) -> Policy:
        return state.policy


class Robust(NamedTuple):
    """log_probs (R, X, A); the guaranteed value of this policy is at least `lower` and at most `found` (R,), and no
    policy guarantees more than `upper` (R,); cuts taken."""

    log_probs: Tensor
    lower: Tensor
    found: Tensor
    upper: Tensor
    cuts: int


def robust_equilibrium(
    preference: Tensor,
    features: Tensor,
    ellipsoid: Tensor,
    ref_log_probs: Tensor,
    weights: Tensor,
    kl_coef: float,
    *,
    tolerance: float = 1e-6,
    max_rounds: int = 60,
) -> Robust:
    """argmax_pi1 min over pi2 and ||q|| <= 1 of J(pi1, pi2) under P = preference + <ellipsoid q, phi_a ^ phi_b>.

    Cutting planes on a concave maximisation: each round finds adversaries (pi2, q) against the current pi1, and pi1
    becomes the optimum against the worst mixture of all found so far, a smooth convex problem in the mixture's weights
    whose value is an upper bound for every policy. Stops, per replicate, when this bound is within `tolerance` of the
    value against the adversaries found. No pure adversary suffices: P_q is skew for every q, so the equilibrium of any
    single one has value 1/2.

    Lower bound: for given pi1 the adversary minimises a concave function g of q, so ||q|| = 1; adding mu / 2 (||q||^2 -
    1) with mu >= the largest eigenvalue of -Hess g anywhere in the ball makes it convex without changing its values
    there, and the convex minimum over the ball, with its own duality gap taken off, is below min g. mu from the
    covariance of phi ^ phi under the best response at q = 0 times exp(range of the payoff's change / kl_coef), or from
    the range alone (Popoviciu) where that is less: tight as the ellipsoid becomes small against kl_coef.

    preference (R, X, A, A), features (R, X, A, d), ellipsoid (R, p, p), references (R, X, A), weights (R, X).
    """
    R = len(preference)
    law, best_law = ref_log_probs, ref_log_probs
    payoffs, costs, mixing = preference.new_zeros(R, 0, *law.shape[1:]), preference.new_zeros(R, 0), None
    upper, found = preference.new_full((R,), torch.inf), preference.new_full((R,), -torch.inf)
    best_q = preference.new_zeros(R, ellipsoid.shape[-1])
    todo = torch.ones(R, dtype=torch.bool, device=law.device)
    for _ in range(max_rounds):
        adversary = _Adversary(law, preference, features, ellipsoid, ref_log_probs, weights, kl_coef)
        own = kl_coef * _kl(law, ref_log_probs, weights)
        attacks = [adversary.descend(start) for start in adversary.starts(best_q)]
        values = torch.stack([value for _, value in attacks]) - own
        better = todo & (values.amin(0) > found)
        found = torch.where(better, values.amin(0), found)
        best_law = torch.where(better[:, None, None], law, best_law)
        best_q = torch.where(
            todo[:, None], torch.stack([q for q, _ in attacks])[values.argmin(0), torch.arange(R)], best_q
        )
        todo = todo & (upper - found > tolerance)
        if not todo.any():
            break
        new = [adversary.cut(q) for q, _ in attacks]
        payoffs = torch.cat([payoffs, torch.stack([payoff for payoff, _ in new], 1)], 1)
        costs = torch.cat([costs, torch.stack([cost for _, cost in new], 1)], 1)
        mixing, bound = _worst_mixture(payoffs, costs, ref_log_probs, weights, kl_coef, mixing)
        upper = torch.where(todo, torch.minimum(upper, bound), upper)
        mixed = torch.einsum("rk,rkxa->rxa", mixing, payoffs)
        law = torch.where(todo[:, None, None], gibbs(mixed, ref_log_probs, kl_coef), law)
    adversary = _Adversary(best_law, preference, features, ellipsoid, ref_log_probs, weights, kl_coef)
    lower = adversary.bound(best_q) - kl_coef * _kl(best_law, ref_log_probs, weights)
    return Robust(best_law, torch.minimum(lower, found), found, upper, costs.shape[1])


def _kl(log_probs: Tensor, ref_log_probs: Tensor, weights: Tensor) -> Tensor:
    ratio = torch.where(torch.isneginf(ref_log_probs), 0.0, log_probs - ref_log_probs)
    return (weights * (log_probs.exp() * ratio).sum(-1)).sum(-1)


class _Adversary:
    """g(q) = min over pi2 of E_x[pi1' P_q pi2] + kl_coef KL(pi2 || ref), concave in q, for a given pi1."""

    def __init__(
        self,
        law: Tensor,
        preference: Tensor,
        features: Tensor,
        ellipsoid: Tensor,
        ref_log_probs: Tensor,
        weights: Tensor,
        kl_coef: float,
    ):
        self.preference, self.features, self.ellipsoid = preference, features, ellipsoid
        self.ref, self.weights, self.kl_coef = ref_log_probs, weights, kl_coef
        pi1 = law.exp()
        self.base = torch.einsum("rxa,rxab->rxb", pi1, preference)
        mean = torch.einsum("rxa,rxad->rxd", pi1, features)[:, :, None].expand_as(features)
        offered = ~torch.isneginf(ref_log_probs)
        self.slopes = torch.where(offered[..., None], wedge(mean, features) @ ellipsoid[:, None], 0.0)  # (R, X, A, p)

    def respond(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The best pi2 (R, X, A) against pi1 under P_q, and g(q) (R,)."""
        tilt = self.ref - (self.base + torch.einsum("rxap,rp->rxa", self.slopes, q)) / self.kl_coef
        log_z = torch.logsumexp(tilt, -1)
        return tilt - log_z[..., None], -self.kl_coef * (self.weights * log_z).sum(-1)

    def gradient(self, log_pi2: Tensor) -> Tensor:
        return torch.einsum("rx,rxa,rxap->rp", self.weights, log_pi2.exp(), self.slopes)

    def curvature(self, log_pi2: Tensor, factor: Tensor | float = 1.0) -> Tensor:
        """-Hess g (R, p, p); with `factor` (R, X) for each context's covariance."""
        p = log_pi2.exp()
        centred = self.slopes - torch.einsum("rxa,rxap->rxp", p, self.slopes)[:, :, None]
        scale = (self.weights * factor / self.kl_coef)[..., None] * p
        return torch.einsum("rxa,rxap,rxaq->rpq", scale, centred, centred)

    def starts(self, last: Tensor) -> list[Tensor]:
        """Where g may be least on the sphere: along and against the direction of its largest curvature, and last."""
        middle, _ = self.respond(torch.zeros_like(last))
        top = torch.linalg.eigh(self.curvature(middle)).eigenvectors[..., -1]
        return [top, -top, last]

    def descend(self, q: Tensor, iterations: int = 500) -> tuple[Tensor, Tensor]:
        """A local minimum on the sphere: q <- -grad g / ||grad g||, which never increases a concave g."""
        value = self.respond(q)[1]
        for _ in range(iterations):
            slope = self.gradient(self.respond(q)[0])
            length = slope.norm(dim=-1, keepdim=True)
            following = torch.where(length > 0, -slope / length.clamp_min(1e-300), q)
            reached = self.respond(following)[1]
            lower = reached < value - 1e-13
            if not lower.any():
                break
            q, value = torch.where(lower[:, None], following, q), torch.where(lower, reached, value)
        return q, value

    def cut(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The attack (pi2, q) as seen by pi1: payoffs (R, X, A) of its actions, and kl_coef KL(pi2 || ref) (R,)."""
        log_pi2, _ = self.respond(q)
        pi2 = log_pi2.exp()
        mean = torch.einsum("rxb,rxbd->rxd", pi2, self.features)[:, :, None].expand_as(self.features)
        shift = torch.einsum("rxap,rp->rxa", wedge(self.features, mean) @ self.ellipsoid[:, None], q)
        payoff = (self.preference @ pi2[..., None]).squeeze(-1) + shift
        return payoff, self.kl_coef * _kl(log_pi2, self.ref, self.weights)

    def bound(self, start: Tensor) -> Tensor:
        """A number (R,) that g exceeds everywhere in the ball."""
        centre, _ = self.respond(torch.zeros_like(start))
        square = self.slopes.square().sum(-1)
        apart = (square[..., :, None] + square[..., None, :] - 2 * self.slopes @ self.slopes.mT).clamp_min(0.0)
        offered = ~torch.isneginf(self.ref)
        apart = torch.where(offered[..., :, None] & offered[..., None, :], apart, 0.0).amax((-1, -2))
        nearby = self.curvature(centre, torch.exp((apart.sqrt() / self.kl_coef).clamp_max(500.0)))
        popoviciu = (self.weights * apart).sum(-1) / (4 * self.kl_coef)
        mu = torch.minimum(torch.linalg.eigvalsh(nearby)[..., -1], popoviciu)
        eye = torch.eye(start.shape[-1], dtype=start.dtype, device=start.device)

        def convex(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            log_pi2, value = self.respond(q)
            return value + mu / 2 * (q.square().sum(-1) - 1), self.gradient(log_pi2) + mu[:, None] * q, log_pi2

        def local(q: Tensor) -> Local:
            value, gradient, log_pi2 = convex(q)
            return newton_local(value, gradient, lambda: mu[:, None, None] * eye - self.curvature(log_pi2), q, 1.0)

        q = minimise(local, start, tolerance=1e-12).argmin
        value, gradient, _ = convex(q)
        # a convex function is above its tangent: true however far the search came
        return value - (gradient * q).sum(-1) - gradient.norm(dim=-1)


def _worst_mixture(
    payoffs: Tensor, costs: Tensor, ref_log_probs: Tensor, weights: Tensor, kl_coef: float, last: Tensor | None
) -> tuple[Tensor, Tensor]:
    """argmin over mixtures m of the K attacks of max_pi1 = kl_coef E_x log E_ref exp(<m, payoffs> / kl_coef) + <m,
    costs>, and that value, an upper bound whatever the accuracy: (R, K), (R,). Newton with a logarithmic barrier that
    costs 1e-9."""
    R, K = costs.shape
    old = 0 if last is None else last.shape[1]
    start = costs.new_full((R, K), 1 / K)
    if last is not None:
        start = 0.5 * start + 0.5 * torch.cat([last, costs.new_zeros(R, K - old)], 1)
    flat = payoffs.flatten(2)

    def evaluate(m: Tensor) -> tuple[Tensor, Tensor]:
        tilt = ref_log_probs + torch.einsum("rk,rkxa->rxa", m, payoffs) / kl_coef
        log_z = torch.logsumexp(tilt, -1)
        return kl_coef * (weights * log_z).sum(-1) + (m * costs).sum(-1), tilt - log_z[..., None]

    def barrier(strength: float) -> Tensor:
        def local(m: Tensor) -> Local:
            inside = (m > 0).all(-1)
            value, law = evaluate(m)
            value = torch.where(inside, value - strength * m.clamp_min(1e-300).log().sum(-1), torch.inf)
            p = weights[..., None] * law.exp()
            mean = torch.einsum("rxa,rkxa->rkx", law.exp(), payoffs)
            gradient = torch.einsum("rx,rkx->rk", weights, mean) + costs - strength / m

            def propose() -> Proposal:
                H = (flat * p.flatten(1)[:, None]) @ flat.mT - (mean * weights[:, None]) @ mean.mT
                H = H / kl_coef + torch.diag_embed(strength / m.square())
                both = torch.linalg.solve(H, torch.stack([gradient, torch.ones_like(gradient)], -1))
                multiplier = both[..., 0].sum(-1, keepdim=True) / both[..., 1].sum(-1, keepdim=True)
                step = multiplier * both[..., 1] - both[..., 0]
                reach = torch.where(step < 0, -m / step, torch.inf).amin(-1, keepdim=True)
                step = step * (0.95 * reach).clamp_max(1.0)
                return Proposal(step, (gradient * step).sum(-1))

            tangent = gradient - gradient.mean(-1, keepdim=True)
            return Local(value, (tangent * m).abs().amax(-1), propose)

        return minimise(local, start, tolerance=0.1 * strength, max_iterations=50).argmin

    for strength in (1e-3, 1e-5, 1e-7, 1e-9 / K):
        start = barrier(strength)
    mixture = start / start.sum(-1, keepdim=True)
    return mixture, evaluate(mixture)[0]

"""One realisation of a world: the truth of R replicates, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from simbandit.draws import Draws, Round
from simbandit.policies import gibbs
from simbandit.types import Contexts


class Coverage(NamedTuple):
    """How well the reference covers the optimum, per replicate (R,): Zhao et al. 2411.04625,
    section 3.

    largest_ratio: max over contexts and actions of pi*(a|x) / ref(a|x) (concentrability C^{pi*});
    mean_ratio: its mean under pi*, `1 + chi-squared(pi* || ref)`, averaged over contexts;
    linear: D^2 = sup phi' (E_ref phi phi')^+ phi, the coverage coefficient of a linear reward class (reward
        feedback);
    centred: the same for phi - E_ref[phi | x], which is what preferences identify (their remark on RLHF:
    subtract b(x)). The last two are None in a world without features, and inf where the reference's mass in a
    direction that some action needs is below what float64 resolves (a probability of about 1e-30).
    """

    largest_ratio: Tensor
    mean_ratio: Tensor
    linear: Tensor | None
    centred: Tensor | None


@dataclass(frozen=True, eq=False)
class Realisation:
    """R replicates of a world. Only metrics and oracles see it; learners get `Contexts`.

    pool: the finite world as one Contexts, (R, X), or None where contexts are fresh every round;
    evaluation: the contexts over which the truth is taken: the pool, or a fixed sample shared by all
        replicates;
    theta_bound: a bound on ||theta*|| that learners are told (the B of the theorems), or None;
    own_dim: numbers that a model per arm regresses on, where these are not all `dim` features;
    theta (R, d): rewards are <features, theta>, or None; reward_table (R, X, A): rewards of the pool, or
    None. What replicates share is expanded, not copied. Absent actions (reference -inf) have reward 0 and
    features 0. draws: the streams that it came from, for oracles with random objects of their own.
    """

    replicates: int
    n_actions: int
    dim: int | None
    reward_range: tuple[float, float]
    evaluation: Contexts
    pool: Contexts | None = None
    theta: Tensor | None = None
    reward_table: Tensor | None = None
    theta_bound: float | None = None
    own_dim: int | None = None
    fresh: Callable[[Round, int], Contexts] | None = None
    draws: Draws | None = None
    _seen: list[tuple[Contexts, Tensor]] = field(default_factory=list, init=False, repr=False)
    _optimal: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def has_rewards(self) -> bool:
        return self.theta is not None or self.reward_table is not None

    def contexts(self, draws: Round, batch_size: int) -> Contexts:
        """The contexts of one round, (R, B), drawn from the world's law."""
        if self.fresh is not None:
            return self.fresh(draws, batch_size)
        assert self.pool is not None
        cumulative = self._law()[0].cumsum(0)
        # scaled by the total: the last cumulative sum need not be 1 to the last bit
        uniforms = draws.uniform("contexts", batch_size).contiguous()
        index = torch.searchsorted(cumulative, uniforms * cumulative[-1], right=True)
        return Contexts(index=index.clamp_(max=len(cumulative) - 1), pool=self.pool)

    def rewards(self, contexts: Contexts) -> Tensor:
        """True rewards, (R, B, A); 0 for absent actions."""
        if self.reward_table is not None and contexts.index is not None:
            return contexts.rows(self.reward_table)
        if self.theta is None:
            raise ValueError("this world has no rewards; give `rewards=` to the world or use a preference table")
        if self._seen and self._seen[0][0] is contexts:  # the oracle and the metrics ask about the same fresh contexts
            return self._seen[0][1]
        rewards = linear_rewards(contexts, self.theta)
        self._seen[:] = [(contexts, rewards)]
        return rewards

    def rewards_of(self, contexts: Contexts, actions: Tensor) -> Tensor:
        """True rewards of the given actions (R, B, k): (R, B, k). A finite world does not gather the rest."""
        if self.reward_table is not None and contexts.index is not None:
            replicate = torch.arange(len(actions), device=actions.device)[:, None, None]
            return self.reward_table[replicate, contexts.index[..., None], actions]
        return self.rewards(contexts).gather(-1, actions)

    @cached_property
    def best_rewards(self) -> Tensor:
        """max over actions of the true rewards of the evaluation contexts, (R, E)."""
        rewards, ref = _narrow(self.rewards(self.evaluation), self.evaluation.ref_log_probs)
        return rewards.masked_fill(ref == -torch.inf, -torch.inf).amax(-1).expand(self.replicates, -1)

    def log_partition(self, kl_coef: float) -> Tensor:
        """log Z = log E_ref exp(r / kl_coef) of the evaluation contexts, (R, E); max J = kl_coef log Z."""
        tilted = self.evaluation.ref_log_probs + self.rewards(self.evaluation) / _positive(kl_coef)
        return torch.logsumexp(tilted, -1)

    def optimal_log_probs(self, kl_coef: float) -> Tensor:
        """pi* = ref exp(r / kl_coef) / Z on the evaluation contexts, (R, E, A); kept."""
        if kl_coef not in self._optimal:
            rewards, ref = self.rewards(self.evaluation), self.evaluation.ref_log_probs
            self._optimal[kl_coef] = gibbs(rewards, ref, _positive(kl_coef))
        return self._optimal[kl_coef]

    def value(self, kl_coef: float, log_probs: Tensor | None = None) -> Tensor:
        """J = E r - kl_coef KL(pi || ref) over the evaluation contexts, (R,), of a policy's (R, E, A) or of
        pi*.

        -inf for a policy with mass where the reference has none. Differences of two values lose digits: for
        gaps use kl_coef KL(pi || pi*).
        """
        if log_probs is None:
            return self._mean(_positive(kl_coef) * self.log_partition(kl_coef))
        per_action = self.rewards(self.evaluation) - _positive(kl_coef) * (log_probs - self.evaluation.ref_log_probs)
        return self._mean(_expect(log_probs, per_action))

    def gaps(self) -> Tensor:
        """max r - r on the evaluation contexts, (R, E, A); 0 for absent actions."""
        gaps = self.best_rewards[..., None] - self.rewards(self.evaluation)
        return gaps.masked_fill(~self._present(), 0.0)

    def curvature(self) -> Tensor:
        """Smallest slope of the logistic link over the reward differences that occur, 1 / (2 + e^D + e^-D),
        (R,).

        gamma in GSHF (kappa or its inverse elsewhere), from the largest D = |r(x,a) - r(x,b)| of this
        instance, which may reach 2B where the papers print B.
        """
        largest = self.gaps().amax((1, 2))
        return torch.sigmoid(largest) * torch.sigmoid(-largest)

    def coverage(self, kl_coef: float) -> Coverage:
        """How well the reference covers pi*: see `Coverage`. Where contexts are fresh, over a sample of
        them."""
        log_ratio = self.rewards(self.evaluation) / kl_coef - self.log_partition(kl_coef)[..., None]
        log_ratio = log_ratio.masked_fill(~self._present(), -torch.inf)
        mean = self._mean(_expect(self.optimal_log_probs(kl_coef), log_ratio.exp()))
        seen = self._law() > 0
        largest = log_ratio.amax(-1).masked_fill(~seen, -torch.inf).amax(-1).exp()
        if not self.evaluation.has_features:
            return Coverage(largest, mean, None, None)
        features, ref, law = _narrow(self.evaluation.features, self.evaluation.ref_log_probs, self._law())
        mass = law[..., None] * ref.exp()
        centred = features - torch.einsum("rxa,rxad->rxd", ref.exp(), features)[:, :, None]
        offered = (law[..., None] > 0) & (ref > -torch.inf)
        linear = _largest_leverage(features, mass, offered).expand(self.replicates)
        relative = _largest_leverage(centred, mass, offered).expand(self.replicates)
        return Coverage(largest, mean, linear, relative)

    def _law(self) -> Tensor:
        assert self.evaluation.weights is not None
        return self.evaluation.weights

    def _mean(self, per_context: Tensor) -> Tensor:
        return (self._law() * per_context).sum(-1)

    def _present(self) -> Tensor:
        return self.evaluation.ref_log_probs > -torch.inf


def replicates_of(replicates: int, draws: Draws) -> int:
    """The number of replicates, which the streams must share."""
    if replicates != len(draws.replicates):
        raise ValueError(f"replicates: must be {len(draws.replicates)}, as many as the draws hold, got {replicates}")
    return replicates


def _positive(kl_coef: float) -> float:
    if not 0 < kl_coef < float("inf"):
        raise ValueError(f"kl_coef: must be > 0, got {kl_coef}")
    return kl_coef


def linear_rewards(contexts: Contexts, theta: Tensor) -> Tensor:
    """<features, theta> of every action, theta (R, d): (R, B, A); 0 for absent ones. On the CPU by NumPy, whose batched
    product is faster than torch's here and does not depend on the size of the batch."""
    x = contexts.vector
    if x is not None:
        rewards = _product(x[:, :, None], theta.reshape(len(theta), 1, -1, x.shape[-1]).mT)[:, :, 0]
        return torch.where(torch.isneginf(contexts.ref_log_probs), 0.0, rewards) if contexts.ragged else rewards
    return _product(contexts.features, theta[:, None, :, None])[..., 0]


def _product(left: Tensor, right: Tensor) -> Tensor:
    return torch.from_numpy(np.matmul(left.numpy(), right.numpy())) if left.device.type == "cpu" else left @ right


def _expect(log_probs: Tensor, values: Tensor) -> Tensor:
    """Sum of probability times value over actions, 0 where the probability is 0 whatever the value."""
    probs = log_probs.exp()
    return torch.where(probs > 0, probs * values, 0.0).sum(-1)


def _narrow(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The first replicate alone where all replicates share every tensor (stride 0), so that work is done
    once."""
    return tuple(t[:1] for t in tensors) if all(t.stride(0) == 0 for t in tensors) else tensors


def _largest_leverage(vectors: Tensor, mass: Tensor, offered: Tensor) -> Tensor:
    """max v' (sum mass v v')^+ v over the offered vectors (R, X, A, d), mass and offered (R, X, A): (R,).

    From a QR factorisation of sqrt(mass) v: a probability p appears as sqrt(p), so 1e-20 is still resolved.
    """
    rows = (mass.sqrt()[..., None] * vectors).flatten(1, 2)
    _, scale, basis = torch.linalg.svd(torch.linalg.qr(rows, mode="r").R, full_matrices=False)
    kept = scale > scale.amax(-1, keepdim=True) * max(rows.shape[1:]) * torch.finfo(scale.dtype).eps
    inside = vectors @ (basis.mT * kept[:, None])[:, None]
    leverage = (inside / torch.where(kept, scale, 1.0)[:, None, None]).square().sum(-1)
    squared = vectors.square().sum(-1)
    lost = squared - inside.square().sum(-1) > 1e-9 * squared  # a direction that an offered action needs was cut off
    return torch.where(lost, torch.inf, leverage).masked_fill(~offered, 0.0).amax((1, 2))

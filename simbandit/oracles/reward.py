"""Annotators that follow the world's rewards: Bradley-Terry, Thurstone, Plackett-Luce, noisy and Bernoulli rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from simbandit.draws import Round
from simbandit.oracles.asking import (
    TABLE_NUMBERS,
    BoundPreference,
    Law,
    PreferenceOracle,
    Question,
    against,
    check_selected,
    rewards_of,
    skew,
    unbound,
    with_rewards,
)
from simbandit.types import Contexts, Feedback


@dataclass(frozen=True)
class BradleyTerry:
    """P(a > b | x) = (1 - flip_rate) sigma((r_a - r_b) / temperature) + flip_rate sigma((r_b - r_a) /
    temperature).

    labels: "hard" (0 or 1, drawn) or "soft" (the probability itself). GSHF (2312.11456), equation (1), at
    temperature 1 without flips. Raises ValueError for temperature <= 0 or a flip rate outside [0, 1].
    """

    labels: Literal["hard", "soft"] = "hard"
    temperature: float = 1.0
    flip_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.labels not in ("hard", "soft"):
            raise ValueError(f"labels: must be 'hard' or 'soft', got {self.labels!r}")
        check_temperature(self.temperature)
        if not 0 <= self.flip_rate <= 1:
            raise ValueError(f"flip_rate: must be in [0, 1], got {self.flip_rate}")

    @property
    def feedback(self) -> Feedback:
        return "preference"

    @property
    def n_select(self) -> int:
        return 2

    def bind(self, instance: Any) -> BoundBradleyTerry:
        return BoundBradleyTerry(self, with_rewards(self, instance))

    def prob(self, contexts: Contexts, first: Tensor, second: Tensor) -> Tensor:
        raise unbound(self)

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        raise unbound(self)


@dataclass(frozen=True, eq=False)
class BoundBradleyTerry:
    oracle: BradleyTerry
    instance: Any

    feedback: ClassVar[Feedback] = "preference"
    n_select: ClassVar[int] = 2

    def prob(self, contexts: Contexts, first: Tensor, second: Tensor) -> Tensor:
        """P(first > second), (R, B), of actions (R, B)."""
        rewards = rewards_of(self.instance, contexts, torch.stack([first, second], -1))
        return self._link(rewards[..., 0] - rewards[..., 1])

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        """Is the first of the actions (R, B, 2) preferred? (R, B): 0 or 1, or the probability if soft."""
        check_selected(self, actions)
        prob = self.prob(contexts, actions[..., 0], actions[..., 1])
        if self.oracle.labels == "soft":
            return prob
        return (draws.uniform("annotator", prob.shape[1]) < prob).to(prob.dtype)

    def win_table(self, contexts: Contexts) -> Tensor:
        """P(a > b | x), (R, X, A, A); 1/2 where either action is absent."""
        return _win_table(self.instance.rewards(contexts), contexts.ref_log_probs, self._link)

    def win_rates(self, contexts: Contexts, log_probs: Tensor) -> Tensor:
        """P(a > b | x) for b drawn from a policy (R, X, A), for every a: (R, X, A)."""
        return _win_rates(self.instance, contexts, log_probs, self._link)

    def _link(self, difference: Tensor) -> Tensor:
        prob = torch.sigmoid(difference / self.oracle.temperature)
        flip = self.oracle.flip_rate
        return prob if flip == 0 else flip + (1 - 2 * flip) * prob


@dataclass(frozen=True)
class Thurstone(PreferenceOracle):
    """P(a > b | x) = Phi((r_a - r_b) / (sqrt(2) noise_std)): each action's worth is seen with its own Gaussian noise.

    Thurstone (1927), case V. Transitive like Bradley-Terry, with lighter tails. Raises ValueError for noise_std <= 0.
    """

    noise_std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.noise_std < float("inf"):
            raise ValueError(f"noise_std: must be finite and > 0, got {self.noise_std}")

    def bind(self, instance: Any) -> BoundPreference:
        with_rewards(self, instance)

        def prob(question: Question) -> Tensor:
            first, second = question.rewards(instance)
            return torch.special.ndtr((first - second) / (2**0.5 * self.noise_std))

        def law(question: Question) -> Law:
            return skew(prob, question)

        return BoundPreference(self, law)


@dataclass(frozen=True)
class PlackettLuce:
    """K-wise rankings: P(a_1 > ... > a_k | x) = prod_i exp(s_i) / sum_(j >= i) exp(s_j), s = r / temperature.

    Zhu, Jordan, Jiao (2301.11270), section 4. At k = 2 it is Bradley-Terry. Raises ValueError for k < 2 or
    temperature <= 0.
    """

    k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 2:
            raise ValueError(f"k: must be an integer >= 2, got {self.k!r}")
        check_temperature(self.temperature)

    @property
    def n_select(self) -> int:
        return self.k

    @property
    def feedback(self) -> Feedback:
        return "ranking"

    def bind(self, instance: Any) -> BoundPlackettLuce:
        return BoundPlackettLuce(self, with_rewards(self, instance))

    def prob(self, contexts: Contexts, ranked: Tensor) -> Tensor:
        raise unbound(self)

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        raise unbound(self)


@dataclass(frozen=True, eq=False)
class BoundPlackettLuce:
    oracle: PlackettLuce
    instance: Any

    feedback: ClassVar[Feedback] = "ranking"

    @property
    def n_select(self) -> int:
        return self.oracle.k

    def prob(self, contexts: Contexts, ranked: Tensor) -> Tensor:
        """Probability of this order, (R, B), of actions (R, B, k) listed best to worst."""
        scores = rewards_of(self.instance, contexts, ranked) / self.oracle.temperature
        rest = scores.flip(-1).logcumsumexp(-1).flip(-1)
        return (scores - rest).sum(-1).exp()

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        """The order, best to worst, of the actions (R, B, k), as positions 0 ... k - 1 among them: (R, B,
        k)."""
        check_selected(self, actions)
        scores = rewards_of(self.instance, contexts, actions) / self.oracle.temperature
        uniforms = draws.uniform("annotator", *scores.shape[1:])
        gumbel = -(-uniforms.log()).log()  # sorting by score + Gumbel noise is exact Plackett-Luce sampling
        return torch.sort(scores + gumbel, dim=-1, descending=True, stable=True).indices

    def win_table(self, contexts: Contexts) -> Tensor:
        """P(a ranked before b | x), (R, X, A, A): Bradley-Terry. 1/2 where either action is absent."""
        return _win_table(self.instance.rewards(contexts), contexts.ref_log_probs, self._link)

    def win_rates(self, contexts: Contexts, log_probs: Tensor) -> Tensor:
        """P(a ranked before b | x) for b drawn from a policy (R, X, A), for every a: (R, X, A)."""
        return _win_rates(self.instance, contexts, log_probs, self._link)

    def _link(self, difference: Tensor) -> Tensor:
        return torch.sigmoid(difference / self.oracle.temperature)


@dataclass(frozen=True)
class NoisyReward:
    """Reward feedback: r(x, a) + noise_std N(0, 1). Raises ValueError for a negative noise_std."""

    noise_std: float

    def __post_init__(self) -> None:
        if not 0 <= self.noise_std < float("inf"):
            raise ValueError(f"noise_std: must be finite and >= 0, got {self.noise_std}")

    @property
    def feedback(self) -> Feedback:
        return "reward"

    @property
    def n_select(self) -> int:
        return 1

    def bind(self, instance: Any) -> BoundNoisyReward:
        return BoundNoisyReward(self, with_rewards(self, instance))

    def mean(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        raise unbound(self)

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        raise unbound(self)


@dataclass(frozen=True, eq=False)
class BoundNoisyReward:
    oracle: NoisyReward
    instance: Any

    feedback: ClassVar[Feedback] = "reward"
    n_select: ClassVar[int] = 1

    def mean(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        """Expected reward: (R, B, k) of the actions (R, B, k), or (R, B, A) of all (0 where absent)."""
        return self.instance.rewards(contexts) if actions is None else rewards_of(self.instance, contexts, actions)

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        """Noisy reward, (R, B), of the action (R, B, 1)."""
        check_selected(self, actions)
        mean = self.mean(contexts, actions)[..., 0]
        return mean + self.oracle.noise_std * draws.normal("noise", mean.shape[1])

    def outcomes(self, contexts: Contexts, draws: Round) -> Tensor:
        """(R, B, A): what `respond` would answer to each action."""
        return self.mean(contexts) + (self.oracle.noise_std * draws.normal("noise", contexts.shape[1]))[..., None]


@dataclass(frozen=True)
class BernoulliReward:
    """Reward feedback of 0 or 1: P(1 | x, a) = sigma(r(x, a)) with link "logistic", r(x, a) itself with "identity".

    Metrics stay those of the world's reward r; the best action is the same. Raises ValueError for an unknown link, and
    when bound to a world whose reward range leaves [0, 1] with "identity".
    """

    link: Literal["logistic", "identity"] = "logistic"

    def __post_init__(self) -> None:
        if self.link not in ("logistic", "identity"):
            raise ValueError(f"link: must be 'logistic' or 'identity', got {self.link!r}")

    @property
    def feedback(self) -> Feedback:
        return "reward"

    @property
    def n_select(self) -> int:
        return 1

    def bind(self, instance: Any) -> BoundBernoulliReward:
        low, high = with_rewards(self, instance).reward_range
        if self.link == "identity" and not 0 <= low <= high <= 1:
            raise ValueError(
                f"link: 'identity' takes rewards as probabilities, and ({low:g}, {high:g}) is outside [0, 1]"
            )
        return BoundBernoulliReward(self, instance)

    def mean(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        raise unbound(self)

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        raise unbound(self)


@dataclass(frozen=True, eq=False)
class BoundBernoulliReward:
    oracle: BernoulliReward
    instance: Any

    feedback: ClassVar[Feedback] = "reward"
    n_select: ClassVar[int] = 1

    def mean(self, contexts: Contexts, actions: Tensor | None = None) -> Tensor:
        """P(1): (R, B, k) of the actions (R, B, k), or (R, B, A) of all."""
        rewards = self.instance.rewards(contexts) if actions is None else rewards_of(self.instance, contexts, actions)
        return torch.sigmoid(rewards) if self.oracle.link == "logistic" else rewards

    def respond(self, contexts: Contexts, actions: Tensor, draws: Round) -> Tensor:
        """0 or 1, (R, B), for the action (R, B, 1)."""
        check_selected(self, actions)
        mean = self.mean(contexts, actions)[..., 0]
        return (draws.uniform("annotator", mean.shape[1]) < mean).to(mean.dtype)

    def outcomes(self, contexts: Contexts, draws: Round) -> Tensor:
        """(R, B, A): what `respond` would answer to each action."""
        mean = self.mean(contexts)
        return (draws.uniform("annotator", mean.shape[1])[..., None] < mean).to(mean.dtype)


def _win_table(rewards: Tensor, ref_log_probs: Tensor, link: Callable[[Tensor], Tensor]) -> Tensor:
    """link(r_a - r_b) for all pairs, (R, X, A, A); 1/2 where either action is absent."""
    present = ref_log_probs > -torch.inf
    both = present[..., :, None] & present[..., None, :]
    return torch.where(both, link(rewards[..., :, None] - rewards[..., None, :]), 0.5)


def _win_rates(instance: Any, contexts: Contexts, log_probs: Tensor, link: Callable[[Tensor], Tensor]) -> Tensor:
    """P q by chunks of contexts; tables that all replicates share (stride 0) are made once."""
    rewards, ref = instance.rewards(contexts), contexts.ref_log_probs
    if rewards.stride(0) == ref.stride(0) == 0:
        rewards, ref = rewards[:1], ref[:1]
    size = max(1, TABLE_NUMBERS // (rewards.shape[0] * rewards.shape[-1] ** 2))
    parts = zip(rewards.split(size, 1), ref.split(size, 1), log_probs.split(size, 1), strict=True)
    return torch.cat([against(_win_table(r, p, link), q) for r, p, q in parts], 1)


def check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: must be finite and > 0, got {temperature}")

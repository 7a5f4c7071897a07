"""Exact quantities of a running simulation, registered in one place. A metric is a plain function of a `Snapshot`.

`suboptimality` and its kin are of the policy, over all contexts (the evaluation sample in a world of fresh contexts);
`reward_regret` is of the actions played at the contexts drawn. `cumulative_NAME` sums NAME over all earlier rounds,
once per interaction of a batch. A metric that has no value yet (a fit before any data) returns None: no row is written.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from simbandit import game_metrics
from simbandit.snapshots import Snapshot, best_reward, kl
from simbandit.types import Instance


def suboptimality(s: Snapshot) -> Tensor:
    """J(pi*) - J(pi) = kl_coef KL(pi || pi*), exactly."""
    return s.kl_coef * kl_to_optimum(s)


def kl_to_optimum(s: Snapshot) -> Tensor:
    """KL(pi || pi*), nats."""
    assert s.optimum is not None
    return s.over_contexts(kl(s.log_probs, s.optimum))


def kl_to_ref(s: Snapshot) -> Tensor:
    """KL(pi || pi_ref), nats."""
    return s.over_contexts(kl(s.log_probs, s.ref_log_probs))


def expected_reward(s: Snapshot) -> Tensor:
    """E_pi[r], without the KL term."""
    return s.expect(s.log_probs, s.rewards)


def policy_reward_regret(s: Snapshot) -> Tensor:
    """E_x[max_a r] - E_pi[r]: unregularised regret of the policy, not of what was played."""
    gaps = best_reward(s.rewards, s.ref_log_probs)[..., None] - s.rewards
    return s.expect(s.log_probs, gaps)


def _argmax_gaps(s: Snapshot) -> Tensor:
    top = s.log_probs >= s.log_probs.amax(-1, keepdim=True) - 1e-9
    chosen = top.to(torch.int8).argmax(-1, keepdim=True)
    return best_reward(s.rewards, s.ref_log_probs) - s.rewards.gather(-1, chosen).squeeze(-1)


def argmax_regret(s: Snapshot) -> Tensor:
    """E_x[max_a r - r at the policy's most probable action] (first index within 1e-9)."""
    return s.over_contexts(_argmax_gaps(s))


def worst_argmax_regret(s: Snapshot) -> Tensor:
    """max_x of `argmax_regret`'s summand: the simple regret of active preference collection."""
    return _argmax_gaps(s).amax(-1)


def reward_regret(s: Snapshot) -> Tensor | None:
    """Expected reward lost by the actions played at the contexts drawn (mean over the batch and a duel's actions)."""
    if s.actions is None or s.contexts is None or s.actions.is_floating_point():
        return None
    played = s.instance.rewards_of(s.contexts, s.actions)
    played = played[..., 0] if played.shape[-1] == 1 else played.mean(-1)
    if s.best_rewards is not None:
        best = s.contexts.rows(s.best_rewards)
    else:
        rewards = s.instance.rewards(s.contexts)
        best = best_reward(rewards, s.contexts.ref_log_probs) if s.contexts.ragged else rewards.amax(-1)
    return (best - played).mean(-1)


def _duel_gaps(s: Snapshot) -> Tensor | None:
    """max_a r - r of both actions of the duels played, (R, B, 2)."""
    if s.actions is None or s.contexts is None or s.actions.is_floating_point() or s.actions.shape[-1] != 2:
        return None
    played = s.instance.rewards_of(s.contexts, s.actions)
    if s.best_rewards is not None:
        return s.contexts.rows(s.best_rewards)[..., None] - played
    return best_reward(s.instance.rewards(s.contexts), s.contexts.ref_log_probs)[..., None] - played


def weak_regret(s: Snapshot) -> Tensor | None:
    """max_a r - max(r_1, r_2) of the duels played: what the better action loses. Weak, strong and average regret as in
    Bengs et al. 2021 (JMLR 22), in rewards instead of win probabilities."""
    gaps = _duel_gaps(s)
    return None if gaps is None else gaps.amin(-1).mean(-1)


def strong_regret(s: Snapshot) -> Tensor | None:
    """max_a r - min(r_1, r_2) of the duels played: what the worse action loses."""
    gaps = _duel_gaps(s)
    return None if gaps is None else gaps.amax(-1).mean(-1)


def average_regret(s: Snapshot) -> Tensor | None:
    """max_a r - (r_1 + r_2) / 2 of the duels played (Saha 2021, halved): `reward_regret` of a duel. The code of VACDB
    (2310.00968) and FGTS.CDB (2404.06013) report 2 max r - r_1 - r_2: `summed_regret`."""
    gaps = _duel_gaps(s)
    return None if gaps is None else gaps.mean((-1, -2))


def summed_regret(s: Snapshot) -> Tensor | None:
    """2 max_a r - r_1 - r_2 of the duels played, not halved (VACDB's code, FGTS.CDB): twice `average_regret`."""
    gaps = _duel_gaps(s)
    return None if gaps is None else gaps.sum(-1).mean(-1)


def win_rate_vs_ref(s: Snapshot) -> Tensor:
    """E_x P(a > b) for a ~ pi, b ~ pi_ref, exactly."""
    if not hasattr(s.oracle, "win_rates"):
        raise ValueError("metrics: win_rate_vs_ref needs an oracle that knows win probabilities")
    wins = s.oracle.win_rates(s.instance.evaluation, s.ref_log_probs)
    return s.expect(s.log_probs, wins)


def informative_pairs(s: Snapshot) -> Tensor:
    """Duels so far whose two actions differ."""
    return s.informative


def estimation_error(s: Snapshot) -> Tensor | None:
    """||theta_hat - theta*|| in the norm of the data, sqrt(mean over observations of <theta_hat - theta*, z>^2)."""
    info, truth = s.info, s.instance.theta
    if info.theta is None or truth is None or info.observations == 0 or info.theta.shape != truth.shape:
        return None
    u = info.theta - truth
    if info.data_matrix is not None:
        squares = torch.einsum("rd,rde,re->r", u, info.data_matrix, u)
    elif info.inverse is not None:
        squares = (u * torch.linalg.solve(info.inverse, u)).sum(-1) - info.ridge * u.square().sum(-1)
    else:
        return None
    return (squares.clamp_min(0.0) / info.observations).sqrt()


def fit_residual(s: Snapshot) -> Tensor | None:
    """Norm of the gradient at which the last fit stopped."""
    return s.info.fit_residual


def fit_value(s: Snapshot) -> Tensor | None:
    """The value that the last fit reached of what it minimised."""
    return s.info.fit_value


def fit_iterations(s: Snapshot) -> Tensor | None:
    """Newton steps of the last fit (Hessians built and factored); on tables those of its slowest context."""
    return s.info.fit_iterations


def confidence_radius(s: Snapshot) -> Tensor | None:
    """The confidence radius that the last update used."""
    if s.info.radius is None:
        return None
    return torch.as_tensor(s.info.radius, dtype=torch.float64).expand(s.instance.replicates)


def oracle_evaluations(s: Snapshot) -> Tensor:
    """Exact evaluations of `FullInformation` so far."""
    return torch.full((s.instance.replicates,), float(s.oracle_evaluations), dtype=torch.float64)


def queries(s: Snapshot) -> Tensor:
    """Comparisons (or rewards) asked so far; a ranking of K counts K - 1."""
    return torch.full((s.instance.replicates,), float(s.queries), dtype=torch.float64)


MetricFunction = Callable[[Snapshot], Tensor | None]
Direction = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Metric:
    """A metric with what a reader of its plot must know: axis label, unit, and which direction is better."""

    function: MetricFunction
    label: str
    unit: str
    better: Direction
    needs_rewards: bool = True


METRICS: dict[str, Metric] = {
    "suboptimality": Metric(suboptimality, "suboptimality J(π*) - J(π)", "reward", "lower"),
    "kl_to_optimum": Metric(kl_to_optimum, "KL(π ‖ π*)", "nats", "lower"),
    "kl_to_ref": Metric(kl_to_ref, "KL(π ‖ π_ref)", "nats", "neither", needs_rewards=False),
    "expected_reward": Metric(expected_reward, "expected reward", "reward", "higher"),
    "policy_reward_regret": Metric(policy_reward_regret, "reward regret of the policy", "reward", "lower"),
    "argmax_regret": Metric(argmax_regret, "regret of the most probable action", "reward", "lower"),
    "worst_argmax_regret": Metric(worst_argmax_regret, "worst-context regret of the argmax", "reward", "lower"),
    "reward_regret": Metric(reward_regret, "reward regret per query", "reward", "lower"),
    "weak_regret": Metric(weak_regret, "regret of the better action", "reward", "lower"),
    "strong_regret": Metric(strong_regret, "regret of the worse action", "reward", "lower"),
    "average_regret": Metric(average_regret, "mean regret of a duel", "reward", "lower"),
    "summed_regret": Metric(summed_regret, "summed regret of a duel", "reward", "lower"),
    "win_rate_vs_ref": Metric(win_rate_vs_ref, "win rate against π_ref", "probability", "higher", needs_rewards=False),
    "duality_gap": Metric(game_metrics.duality_gap, "duality gap", "win probability", "lower", needs_rewards=False),
    "exploitability": Metric(game_metrics.exploitability, "exploitability", "win probability", "lower", False),
    "unregularised_gap": Metric(
        game_metrics.unregularised_gap, "duality gap without KL", "win probability", "lower", False
    ),
    "kl_to_nash": Metric(game_metrics.kl_to_nash, "KL(π_Nash ‖ π)", "nats", "lower", needs_rewards=False),
    "nash_win_margin": Metric(
        game_metrics.nash_win_margin, "win margin of the Nash policy", "win probability", "lower", False
    ),
    "borda_regret": Metric(game_metrics.borda_regret, "Borda regret", "win probability", "lower", needs_rewards=False),
    "von_neumann_regret": Metric(
        game_metrics.von_neumann_regret, "regret to the von Neumann winner", "win probability", "lower", False
    ),
    "minority_mass": Metric(game_metrics.minority_mass, "mass of minorities", "probability", "higher", False),
    "matching_divergence": Metric(
        game_metrics.matching_divergence, "divergence from preference matching", "nats", "lower", False
    ),
    "informative_pairs": Metric(informative_pairs, "informative duels", "duels", "neither", needs_rewards=False),
    "estimation_error": Metric(estimation_error, "estimation error, data norm", "reward", "lower"),
    "fit_residual": Metric(fit_residual, "residual of the fit", "gradient norm", "lower", needs_rewards=False),
    "fit_value": Metric(fit_value, "value of the fit", "loss", "lower", needs_rewards=False),
    "fit_iterations": Metric(fit_iterations, "Newton steps of the fit", "steps", "lower", needs_rewards=False),
    "confidence_radius": Metric(confidence_radius, "confidence radius", "reward", "neither", needs_rewards=False),
    "oracle_evaluations": Metric(oracle_evaluations, "oracle evaluations", "calls", "neither", needs_rewards=False),
    "queries": Metric(queries, "queries", "comparisons", "neither", needs_rewards=False),
}
CUMULATIVE = "cumulative_"
OF_PLAY = frozenset({reward_regret, weak_regret, strong_regret, average_regret, summed_regret})
"""Metrics of what was played where, whatever the policy: means over the contexts of a batch."""
OF_POLICY = {m.function for m in METRICS.values()} - OF_PLAY - {game_metrics.von_neumann_regret, estimation_error}
"""Metrics that look neither at what was played nor at a matrix that playing changes in place."""


def resolve(
    metrics: Sequence[str | tuple[str, MetricFunction]], has_rewards: bool = True
) -> list[tuple[str, MetricFunction]]:
    """Names and functions of registered metrics and of the user's own (name, function) pairs."""
    if isinstance(metrics, str):
        raise ValueError(f"metrics: must be a list of names, got the single text {metrics!r}")
    resolved: list[tuple[str, MetricFunction]] = []
    for metric in metrics:
        if isinstance(metric, str):
            base = metric.removeprefix(CUMULATIVE)
            if base not in METRICS:
                near = difflib.get_close_matches(base, METRICS, n=3) or sorted(METRICS)
                raise ValueError(f"metrics: no metric is called {metric!r}; did you mean {', '.join(near)}?")
            if METRICS[base].needs_rewards and not has_rewards:
                raise ValueError(f"metrics: {metric} needs a world with rewards, and this one has none")
            resolved.append((metric, METRICS[base].function))
        else:
            resolved.append(metric)
    return resolved


def defaults(instance: Instance, oracle: Any) -> list[str]:
    """Cumulative suboptimality needs the policy of every round: by default only where the world is finite. Without
    rewards, the gaps of the game that the oracle poses, where it tells its table."""
    if not getattr(instance, "has_rewards", True):
        gaps = ["duality_gap", "unregularised_gap"] if hasattr(oracle, "win_table") else []
        return [*gaps, "kl_to_ref", "win_rate_vs_ref"]
    names = ["suboptimality", "reward_regret", "cumulative_reward_regret", "kl_to_ref"]
    return names if instance.pool is None else [*names, "cumulative_suboptimality"]

"""Game dynamics as solvers of given games: to study them beside `equilibrium.solve`, with its stopping rule.

    P, ref = torch.rand(100, 10, 10).double(), torch.full((100, 10), -math.log(10)).double()
    P = symmetrise(P)
    certified = solve(P, ref, 0.1)
    slow = run(ExtraGradient(), P, ref, 0.1)        # or MirrorDescent(), BestResponse(damping), FictitiousPlay(), ...
    slow.iterations / certified.iterations          # evaluations of P q against Newton steps

The same objects learn in `simulate` through `FullInformation`; there one round is one evaluation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simbandit.algorithms.dynamics import GameDynamics
from simbandit.draws import Draws
from simbandit.equilibrium import Equilibrium, best_response, check_preference, check_reference, duality_gap
from simbandit.policies import Tabular
from simbandit.types import Contexts, Setting


def run(
    rule: GameDynamics,
    preference: Tensor,
    ref_log_probs: Tensor,
    kl_coef: float,
    *,
    tolerance: float = 1e-12,
    max_evaluations: int = 10_000,
) -> Equilibrium:
    """Iterates `rule` on all games at once, from the reference, until max |log pi - log BR(pi)| <= tolerance max(1, 1 /
    kl_coef), per game, or for `max_evaluations` of P q.

    preference (..., A, A), ref_log_probs (..., A). Each game's answer is its policy when it first met the rule;
    `iterations` counts the evaluations that took, two a step for the extragradient. The certificate's own product is
    not counted. Rules for the unregularised game do not converge in this sense, and say so. Raises ValueError as
    `solve`.
    """
    if not kl_coef > 0:
        raise ValueError(f"kl_coef: must be > 0, got {kl_coef}")
    check_preference(preference)
    check_reference(ref_log_probs)
    lead, n = torch.broadcast_shapes(preference.shape[:-2], ref_log_probs.shape[:-1]), preference.shape[-1]
    table = preference.to(torch.float64).expand(*lead, n, n).reshape(1, -1, n, n)
    ref = ref_log_probs.to(torch.float64).expand(*lead, n).reshape(1, -1, n)
    offered = ~torch.isneginf(ref)
    pool = Contexts(index=torch.arange(ref.shape[1], device=ref.device)[None], ref_log_probs=ref)
    setting = Setting(1, max_evaluations, 1, n, None, kl_coef, (0.0, 1.0), pool, Tabular(ref), "full", 0)
    state, now = rule.init(setting), Draws(0, 1).at(0)
    final = tolerance * max(1.0, 1.0 / kl_coef)
    answer, taken = ref.clone(), torch.zeros(ref.shape[:2], dtype=torch.int64, device=ref.device)
    converged = torch.zeros_like(taken, dtype=torch.bool)
    for t in range(max_evaluations + 1):
        policy = rule.policy(state).log_probs(pool)
        apart = policy - best_response(policy, table, ref, kl_coef)
        met = torch.where(offered, apart.abs(), 0.0).amax(-1) <= final
        answer = torch.where(converged[..., None], answer, policy)
        taken = torch.where(converged, taken, t)
        converged = converged | met
        if t == max_evaluations or bool(converged.all()):
            break
        asked = rule.query(state)
        wins = (table @ asked.exp()[..., None]).squeeze(-1)
        state, _ = rule.update(state, pool, asked, wins, now)
    gap = duality_gap(answer, table, ref, kl_coef)
    return Equilibrium(answer.reshape(*lead, n), gap.reshape(lead), taken.reshape(lead), converged.reshape(lead))

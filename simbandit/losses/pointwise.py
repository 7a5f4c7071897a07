"""Losses of each response by itself: the winner's log-ratio a_w is pushed up and the loser's a_l down.

w is a response's win rate: the probability that it won, given that it was in a duel. The minimisers below are over
*unnormalised* log-ratios a = log pi/pi_ref, one response at a time; a normalised policy has one a fewer than
responses, and its minimiser is another (two arms, p = .8, uniform reference, kl_coef 1: BCO's gap is 2.091, not 2.773).
A duel of a response with itself counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from simbandit.losses.forms import either, log_ratio_gap, log_ratios, non_negative, positive
from simbandit.objective import PairLogProbs


def bco(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Binary classifier optimisation: -log sigma(kl_coef a_w) - log sigma(-kl_coef a_l).

    Source: Jung et al. 2024 (2404.04656); TRL `bco_pair`, whose documentation prints DPO's formula. The shift of both
    rewards by their running mean (TRL's BCO trainer) is left out there and here. Population minimiser: a = logit(w) /
    kl_coef.
    """
    first, second = log_ratios(log_probs)
    x, y = kl_coef * first, kl_coef * second
    return -either(label, logsigmoid(x) + logsigmoid(-y), logsigmoid(y) + logsigmoid(-x))


def nca(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Noise contrastive alignment on pairs: -log sigma(kl_coef a_w) - log sigma(-kl_coef a_w) / 2
    - log sigma(-kl_coef a_l) / 2.

    Source: Chen et al. 2024 (2402.05369); TRL `nca_pair`. Population minimiser: a = log(2 w) / kl_coef: it keeps the
    absolute likelihood of winners from falling.
    """
    first, second = log_ratios(log_probs)
    x, y = kl_coef * first, kl_coef * second
    return -either(label, logsigmoid(x), logsigmoid(y)) - (logsigmoid(-x) + logsigmoid(-y)) / 2


def kto(
    log_probs: PairLogProbs,
    label: Tensor,
    kl_coef: float,
    *,
    desirable_weight: float,
    undesirable_weight: float,
    reference_point: float | Tensor,
) -> Tensor:
    """Kahneman-Tversky optimisation of a duel's two responses, the winner desirable and the loser not:
    desirable_weight (1 - sigma(kl_coef (a_w - z))) + undesirable_weight (1 - sigma(kl_coef (z - a_l))).

    Source: Ethayarajh et al. 2024 (2402.01306). z = reference_point >= 0 is KL(pi || pi_ref) in nats, which their code
    and TRL's estimate from mismatched prompts and responses of a batch, clamp at 0 and detach: no function of a duel's
    log-probabilities, so it is given (0: `apo_zero` with weights). Population minimiser: none; a response whose
    weighted win rate desirable_weight w exceeds undesirable_weight (1 - w) has its a pushed to +inf, any other to -inf,
    with saturating steps: a majority vote.
    """
    positive(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    non_negative(reference_point=reference_point)
    first, second = (kl_coef * (a - reference_point) for a in log_ratios(log_probs))
    won, lost = torch.sigmoid(-first), torch.sigmoid(first)
    other_won, other_lost = torch.sigmoid(-second), torch.sigmoid(second)
    return either(
        label,
        desirable_weight * won + undesirable_weight * other_lost,
        desirable_weight * other_won + undesirable_weight * lost,
    )


def apo_zero(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Anchored preference optimisation, zero: 1 - sigma(kl_coef a_w) + sigma(kl_coef a_l).

    Source: D'Oosterlinck et al. 2024 (2408.06266), eq. 7: for winners better than the policy. TRL `apo_zero`.
    Population minimiser: none; a goes to +inf for w > 1/2 and to -inf for w < 1/2.
    """
    first, second = log_ratios(log_probs)
    x, y = torch.sigmoid(kl_coef * first), torch.sigmoid(kl_coef * second)
    return either(label, 1 - x + y, 1 - y + x)


def apo_down(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Anchored preference optimisation, down: sigma(kl_coef a_w) + 1 - sigma(kl_coef (a_w - a_l)).

    Source: D'Oosterlinck et al. 2024 (2408.06266), eq. 8: for winners worse than the policy. TRL `apo_down`. Population
    minimiser: none; the infimum 0 of one winning pair is approached as a_w and a_w - a_l go to -inf and +inf.
    """
    first, second = log_ratios(log_probs)
    m = kl_coef * log_ratio_gap(log_probs)
    return either(
        label,
        torch.sigmoid(kl_coef * first) + torch.sigmoid(-m),
        torch.sigmoid(kl_coef * second) + torch.sigmoid(m),
    )

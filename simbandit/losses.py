"""Preference losses: pure functions `loss(log_probs, label, kl_coef, ...) -> one value per duel`.

`log_probs` holds sequence-level log-probabilities of both responses of every duel under the policy now, the last policy
and the reference, (..., 2), in the order in which they were played; `label` is the probability that the first wins
(hard labels are 0 and 1). Every loss is affine in the label, label * l(first, second) + (1 - label) * l(second, first),
so duels may be counted and labels soft. Tables and language models share these functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simbandit.objective import PairLogProbs


def _gap(pair: Tensor) -> Tensor:
    return pair[..., 0] - pair[..., 1]


def dpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Direct preference optimisation: -log sigma(m), m = kl_coef (log-ratio of the winner - log-ratio of the loser).

    Source: Rafailov et al. 2023 (2305.18290), eq. 7; their beta is `kl_coef`. Population minimiser: the implied reward
    kl_coef log pi/pi_ref has differences logit(p); over all policies this is Gibbs of the Bradley-Terry MLE.
    """
    m = kl_coef * (_gap(log_probs.now) - _gap(log_probs.ref))
    return label * torch.nn.functional.softplus(-m) + (1 - label) * torch.nn.functional.softplus(m)


def inpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float) -> Tensor:
    """Iterative Nash policy optimisation: (h - step_size / 2)^2 for the winner's h, with
    h = gap(log pi) - kl_coef step_size gap(log pi_ref) - (1 - kl_coef step_size) gap(log pi_last).

    Source: Zhang et al. 2024 (2407.00617), eq. 9; their tau is `kl_coef` and their eta is 1 / `step_size`. Population
    minimiser under pairs drawn i.i.d. from pi_last: the mirror-descent step
    pi proportional to pi_ref^(kl s) pi_last^(1 - kl s) exp(s P(. beats pi_last)), s = step_size.
    """
    pull = kl_coef * step_size
    h = _gap(log_probs.now) - pull * _gap(log_probs.ref) - (1 - pull) * _gap(log_probs.last)
    return label * (h - step_size / 2) ** 2 + (1 - label) * (h + step_size / 2) ** 2

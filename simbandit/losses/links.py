"""Links other than the logarithm: the loss is DPO's of kl_coef (f'(pi/pi_ref)(winner) - f'(pi/pi_ref)(loser)).

Such a loss is the maximum-likelihood fit of a Bradley-Terry reward over the policies that are optimal for it under the
penalty kl_coef E_ref f(pi/pi_ref) (2309.16240, 2407.13399), so where the labels are Bradley-Terry
with rewards r the population minimiser is that penalty's optimum, kl_coef f'(pi/pi_ref) = r - c, with c from the
normalisation. Reverse KL, f' = log, is `dpo`. Unlike DPO's, these losses notice the normaliser: the differences of f'
are no differences of logits. z = log pi/pi_ref; exponentials beyond e^60 are continued by their tangents.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from simbandit.losses.forms import cross_entropy, exp, gap, non_negative, positive, rounded_relu
from simbandit.objective import PairLogProbs


def f_dpo_forward_kl(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Forward KL: f'(t) = -1/t, up to a constant. Source: f-DPO (Wang et al. 2023, 2309.16240); TRL `forward_kl`.
    Population minimiser: pi = pi_ref kl_coef / (c - r), mass-covering."""
    return cross_entropy(-kl_coef * gap(exp(log_probs.ref - log_probs.now)), label)


def f_dpo_js(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Jensen-Shannon: f'(t) = log(2 t / (1 + t)) = log sigma(z) + log 2. Source: as `f_dpo_forward_kl`; TRL
    `js_divergence`. Population minimiser: pi = pi_ref s / (2 - s), s = exp((r - c) / kl_coef)."""
    return cross_entropy(kl_coef * gap(logsigmoid(log_probs.now - log_probs.ref)), label)


def f_dpo_alpha(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """Alpha-divergence, alpha in (0, 1): f'(t) = (1 - t^-alpha) / alpha, from reverse KL (alpha -> 0) to forward KL
    (alpha -> 1). Source: as `f_dpo_forward_kl`; TRL's coefficient is 1 - alpha. Population minimiser:
    pi = pi_ref (1 - alpha (r - c) / kl_coef)^(-1 / alpha)."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: must lie in (0, 1), got {alpha}")
    return cross_entropy(-kl_coef / alpha * gap(exp(alpha * (log_probs.ref - log_probs.now))), label)


def chi_po(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, clip: float, rounding: float = 0.0) -> Tensor:
    """Chi-squared preference optimisation: f'(t) = t + log t, and the margin clipped to [-clip, clip].

    Source: Huang et al. 2024 (2407.13399); clip is their 2 R_max, the width of the reward range twice (inf
    for none). The penalty is kl_coef (chi^2/2 + KL), chi^2/2 = E_ref (pi/pi_ref - 1)^2 / 2. Population minimiser where
    |r - r'| < clip: pi = pi_ref W0(exp((r - c) / kl_coef)), W0 Lambert's function: density ratios grow linearly in
    r / kl_coef, not exponentially. The clip stops the gradient of a pair beyond it, so the loss has plateaus; its two
    corners are parabolas over +-rounding, which Newton needs.
    """
    positive(clip=clip)
    non_negative(rounding=rounding)
    z = log_probs.now - log_probs.ref
    m = kl_coef * gap(z + exp(z))
    if math.isinf(clip):
        return cross_entropy(m, label)
    m = m.clamp(-clip - rounding, clip + rounding)  # huge margins would cancel below
    clipped = rounded_relu(m + clip, rounding) - rounded_relu(m - clip, rounding) - clip
    return cross_entropy(clipped, label)

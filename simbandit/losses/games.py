"""The games' losses: regressions whose population minimiser, under pairs drawn i.i.d. from a law q, is a step along the
win rates P(. beats q). The pair losses (`pairs.ipo`, `inpo`, `onpo`) take it for every normalised policy, the pointwise
ones (`sppo` and `rspo_*`) only for unnormalised log-ratios.

Nash-MD needs no loss of its own: `inpo` with both responses drawn from the geometric mixture pi_ref^w pi_last^(1 - w),
w = kl_coef step_size, is its step (2312.00886, section 6). Its policy-gradient form E[grad log pi(y) (P(y beats y') -
1/2 - kl_coef log pi/pi_ref)] is a direction and no loss: a surrogate that is linear in log pi has no minimiser.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simbandit.losses.forms import cross_entropy, divergence, exp, gap, positive, regression
from simbandit.objective import PairLogProbs


def inpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float) -> Tensor:
    """Iterative Nash policy optimisation: (h - step_size / 2)^2 for the winner's h, with
    h = gap(log pi) - kl_coef step_size gap(log pi_ref) - (1 - kl_coef step_size) gap(log pi_last).

    Source: Zhang et al. 2024 (2407.00617), eq. 8; their tau is `kl_coef` and their eta is 1 / `step_size`. Population
    minimiser under pairs drawn i.i.d. from q (the paper: pi_last): the mirror-descent step
    pi proportional to pi_ref^(kl s) pi_last^(1 - kl s) exp(s P(. beats q)), s = step_size.
    """
    positive(step_size=step_size)
    pull = kl_coef * step_size
    h = gap(log_probs.now) - pull * gap(log_probs.ref) - (1 - pull) * gap(log_probs.last)
    return regression(h, step_size / 2, label)


def onpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float) -> Tensor:
    """Optimistic Nash policy optimisation: (h - step_size / 2)^2, h the winner's gap(log pi) - gap(log pi_last).

    Source: 2502.16852; their eta is `step_size`. Of the unregularised game: kl_coef plays no part (`inpo` at kl_coef =
    0). Population minimiser under pairs drawn i.i.d. from q: the multiplicative-weights step, pi proportional to
    pi_last exp(step_size P(. beats q)). The optimism is in who draws the pairs, not in the loss.
    """
    del kl_coef
    positive(step_size=step_size)
    return regression(gap(log_probs.now) - gap(log_probs.last), step_size / 2, label)


def sppo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float) -> Tensor:
    """Self-play preference optimisation: ((a_w - step_size / 2)^2 + (a_l + step_size / 2)^2) / 2, a = log pi/pi_last.

    Source: Wu et al. 2024 (2405.00675), Algorithm 1; their eta is `step_size`, the code's beta 1 / step_size. With a
    soft label this is their probability target (a - step_size (p - 1/2))^2 up to step_size^2 p (1 - p), which does not
    depend on the policy: hard and probability targets are one loss. Pointwise: a duel of a response with itself counts
    (a win rate includes the draw with oneself). Population minimiser over unnormalised a, pairs i.i.d. from pi_last:
    a = step_size (P(. beats pi_last) - 1/2).
    Deviation from multiplicative weights, in the paper and its code alike: the log-partition is taken to be
    step_size / 2, so that for a normalised policy the minimiser is not the step proportional to pi_last exp(s P), but
    agrees with it to first order in step_size. kl_coef plays no part. The code also reduces its judge to one score per
    response, that is to Bradley-Terry; here labels are the oracle's.
    """
    del kl_coef
    positive(step_size=step_size)
    first, second = (log_probs.now - log_probs.last)[..., :2].unbind(-1)
    return (regression(first, step_size / 2, label) + regression(-second, step_size / 2, label)) / 2


def dno(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float) -> Tensor:
    """Direct Nash optimisation: soft cross-entropy of sigma(m), m = gap(log pi/pi_last) / step_size, with the label.

    Source: Rosset et al. 2024 (2404.03715), Algorithm 1; their eta is 1 / `step_size`; kl_coef plays no part. There the
    label is sigma(r_1 - r_2), r = P(. beats pi_last), and the population minimiser, under any law of pairs, is the
    multiplicative-weights step pi proportional to pi_last exp(step_size r). With the labels of duels it is DPO towards
    the last policy (the paired form, DNO-Prct without its filter of pairs), whose minimiser has gaps
    step_size logit(p): another step.
    """
    del kl_coef
    positive(step_size=step_size)
    return cross_entropy((gap(log_probs.now) - gap(log_probs.last)) / step_size, label)


def _rspo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, step_size: float, penalty: Tensor) -> Tensor:
    """SPPO's loss plus 2 step_size kl_coef times a divergence from the reference, (..., 2) by response."""
    return sppo(log_probs, label, kl_coef, step_size=step_size) + 2 * step_size * kl_coef * penalty[..., :2].mean(-1)


def rspo_reverse_kl(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float) -> Tensor:
    """Regularised self-play: SPPO's loss + 2 step_size kl_coef KL(pi || pi_ref).

    Source: 2503.00030 (RSPO): loss + lambda R(pi, pi_ref); the weight lambda = 2 step_size kl_coef is derived here: it
    is the one whose fixed point, where pairs come from pi = pi_last, is the equilibrium of the game
    P(pi beats pi') - kl_coef R(pi, pi_ref) + kl_coef R(pi', pi_ref), SPPO's offset notwithstanding. The step towards it
    is implicit in R, so it is stable for large kl_coef step_size where `inpo` is not.
    R is estimated on the duel's own responses by importance weights w = pi/pi_last, v = pi_ref/pi_last:
    w log(w / v) - w + v, non-negative and 0 at pi = pi_ref (the last two terms have mean 0). The paper states the
    divergence; this per-response form is ours. Its population minimiser is measured, not known in closed form.
    """
    return _rspo(log_probs, label, kl_coef, step_size, divergence(log_probs))


def rspo_forward_kl(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float) -> Tensor:
    """Regularised self-play: SPPO's loss + 2 step_size kl_coef KL(pi_ref || pi), estimated by v log(v / w) - v + w.

    Source, weight, fixed point, population minimiser and estimate: `rspo_reverse_kl`. Convex in log pi.
    """
    w, v = exp(log_probs.now - log_probs.last), exp(log_probs.ref - log_probs.last)
    return _rspo(log_probs, label, kl_coef, step_size, v * (log_probs.ref - log_probs.now) - v + w)


def rspo_chi_squared(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float) -> Tensor:
    """Regularised self-play: SPPO's loss + 2 step_size kl_coef E_ref (pi/pi_ref - 1)^2 / 2, estimated by
    v (w / v - 1)^2 / 2.

    Source, weight, fixed point, population minimiser and estimate: `rspo_reverse_kl`. The half is
    `policies.DIVERGENCES`' convention.
    """
    v = exp(log_probs.ref - log_probs.last)
    return _rspo(
        log_probs, label, kl_coef, step_size, v * torch.expm1((log_probs.now - log_probs.ref).clamp(max=30.0)) ** 2 / 2
    )

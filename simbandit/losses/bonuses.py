"""Bonuses, which are losses of a single response (k = 1, the label is not looked at), and the losses made with them.

A composition is a pair loss of columns 0 and 1 plus a bonus of column 2, a *calibration draw* whose law is stated: a
row that sums the pair loss and the bonus as two terms minimises the same function. Pushing log pi *down* where the
calibration policy plays is optimism: with E_cal[r] = 0 the optimal value is J*(r) = -kl_coef E_cal[log pi_r/pi_ref].
Optimism (`+ alpha log pi`) and pessimism (`- alpha log pi`) are two functions, alpha > 0 in both.

Scale: fits sum over duels, and alpha is the weight of one draw. XPO and SELM have one draw per duel; VPO's bonus is one
expectation, however many duels there are, so its alpha is t times this one when it is estimated by t draws. Where the
draws coincide, xpo with alpha = kl_coef alpha' is selm with alpha' and vpo_online with alpha'.

A bonus is linear in log pi, so an optimistic loss is not convex in logits and, where a response was drawn for
calibration but never (or too rarely) duelled, not bounded below: a fit needs its bound and several starts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from simbandit.losses.forms import (
    cross_entropy,
    divergence,
    draw,
    either,
    exp,
    gap,
    log_ratio_gap,
    non_negative,
    pair,
    positive,
)
from simbandit.losses.pairs import dpo
from simbandit.objective import PairLogProbs


def _strength(alpha: float, opposite: str) -> None:
    """Raises ValueError for a sign that is another function's."""
    if not alpha > 0:
        raise ValueError(f"alpha: must be > 0, got {alpha}; the opposite sign is `{opposite}`")


# ------------------------------------------------------------------------------------------------------------ bonuses


def optimism(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """+ alpha (log pi - log pi_ref) of one draw of the calibration policy. Source: derived from Gibbs' formula, as
    VPO, XPO and SELM do. Population minimiser: none; log pi -> -inf on the calibration policy's support."""
    del kl_coef
    _strength(alpha, "pessimism")
    return alpha * (log_probs.now - log_probs.ref)[..., 0] + 0 * label


def pessimism(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """- alpha (log pi - log pi_ref) of one draw: supervised fine-tuning towards the calibration policy, which is its
    population minimiser. Source: VPO's offline sign, RPO's baseline term."""
    del kl_coef
    _strength(alpha, "optimism")
    return -alpha * (log_probs.now - log_probs.ref)[..., 0] + 0 * label


def value_optimism(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """`optimism` of weight alpha kl_coef: minus alpha times the optimal value J* of the implied reward whose mean under
    the calibration policy is 0. VPO's and SELM's piece. Source and population minimiser: `optimism`."""
    _strength(alpha, "value_pessimism")
    return optimism(log_probs, label, kl_coef, alpha=alpha * kl_coef)


def value_pessimism(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """`pessimism` of weight alpha kl_coef: plus alpha J*. Offline VPO's piece. Source and population minimiser:
    `pessimism`."""
    _strength(alpha, "value_optimism")
    return pessimism(log_probs, label, kl_coef, alpha=alpha * kl_coef)


def self_play_penalty(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float) -> Tensor:
    """log pi/pi_last(draw) / step_size of the last policy's own draw: SPAC's push against what it would play. Source:
    `spac`. Population minimiser, alone: none; log pi -> -inf where the last policy plays."""
    del kl_coef
    positive(step_size=step_size)
    return ((log_probs.now - log_probs.last) / step_size)[..., 0] + 0 * label


def critic(
    log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float, preference_weight: float
) -> Tensor:
    """SPAC's part of the data: preference_weight DPO(reference pi_last, coefficient 1 / step_size) - the mean of
    log pi/pi_last over the duel's responses / step_size. Source and population minimiser: `spac`."""
    del kl_coef
    positive(step_size=step_size, preference_weight=preference_weight)
    moved = (log_probs.now - log_probs.last) / step_size
    return preference_weight * cross_entropy(gap(moved), label) - moved.mean(-1)


def preference_optimism(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """alpha (sigma(kl_coef a) - 1/2) / kl_coef, a = log pi/pi_ref of one draw: optimism about the probability of being
    preferred, not about the reward. Its slope alpha sigma'(kl_coef a) is alpha / 4 at a = 0 and fades, so it cannot run
    away: bounded by alpha / (2 kl_coef). Source: SE-POPO's released code (2502.00666), whose draw is the duel's first
    response. Population minimiser: none."""
    positive(alpha=alpha)
    a = (log_probs.now - log_probs.ref)[..., 0]
    return alpha / kl_coef * (torch.sigmoid(kl_coef * a) - 0.5) + 0 * label


def count_optimism(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """- alpha F(pi/pi_ref) of one draw of the reference; its weight in the sum is the exploration bonus, for COPO
    1 / sqrt(N(x, y)). F(z) = z up to 5 and 5 + 5 log(z / 5) beyond.

    Source: COPO's released code (2501.12735): - alpha sg[min(pi/pi_ref, 5) bonus] log pi; F is the function that has
    this gradient, so no stop-gradient is needed. As E_ref[pi/pi_ref bonus] = E_pi[bonus], it maximises the policy's
    expected bonus. Population minimiser: none by itself.
    """
    del kl_coef
    positive(alpha=alpha)
    return -alpha * exp((log_probs.now - log_probs.ref)[..., 0], cap=math.log(5.0)) + 0 * label


def kl_penalty(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, weight: float) -> Tensor:
    """weight KL(pi || pi_ref), estimated on one draw of the last policy: w log(w / v) - w + v with w = pi/pi_last,
    v = pi_ref/pi_last. At now = last its gradient is weight (log pi/pi_ref) grad log pi, REINFORCE's without a
    baseline. Source: the regulariser of HyPO (2406.01462); this estimate is ours. Population minimiser: pi_ref."""
    del kl_coef
    non_negative(weight=weight)
    return weight * divergence(log_probs)[..., 0] + 0 * label


# ------------------------------------------------------------------------------------------------------- compositions


def xpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """Exploratory preference optimisation: DPO + alpha log pi(draw), here minus the constant alpha log pi_ref(draw).

    Source: Xie et al. 2024 (2405.21046), Algorithm 1; there the draw is the duel's own second response, which the
    reference played. alpha: the paper gives no numbers; TRL's default 1e-5, on argmax labels of a reward model.
    Population minimiser: no closed form; not convex (see above).
    """
    _strength(alpha, "pessimism")
    return dpo(log_probs, label, kl_coef) + optimism(draw(log_probs), label, kl_coef, alpha=alpha)


def vpo_online(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """Value-incentivised preference optimisation, online (optimistic): DPO + alpha kl_coef log pi/pi_ref(draw).

    Source: Cen et al. 2024 (2405.19320). alpha is the weight of one draw: the paper's is a coefficient of one
    expectation (see above). The calibration policy is a choice of the user there. No released code. Population
    minimiser: no closed form; not convex, and the exact argmin is bang-bang: the paper takes 20 AdamW steps a round.
    """
    _strength(alpha, "vpo_offline")
    return dpo(log_probs, label, kl_coef) + value_optimism(draw(log_probs), label, kl_coef, alpha=alpha)


def vpo_offline(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """VPO offline (pessimistic): DPO - alpha kl_coef log pi/pi_ref(draw). Source: as `vpo_online`. With the winner as
    draw it is `rpo` of sft_weight = alpha kl_coef, up to a constant. Convex. Population minimiser: no closed form."""
    _strength(alpha, "vpo_online")
    return dpo(log_probs, label, kl_coef) + value_pessimism(draw(log_probs), label, kl_coef, alpha=alpha)


def selm(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """Self-exploring language models: DPO + alpha kl_coef log pi/pi_ref(draw).

    Source: Zhang et al. 2024 (2405.19332) and its code, `selm_trainer.py`; the function of `vpo_online`. What differs
    is the row: the draw is the iteration's reference model's response, decoded greedily, pairs are the best and worst
    of three, and the reference moves to the policy at every iteration. Values: kl_coef .01, alpha .001 or .0001.
    Population minimiser: `vpo_online`'s, no closed form, not convex.
    """
    _strength(alpha, "vpo_offline")
    return vpo_online(log_probs, label, kl_coef, alpha=alpha)


def se_popo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """DPO + alpha (sigma(kl_coef log pi/pi_ref(draw)) - 1/2) / kl_coef.

    Source: SE-POPO (2502.00666), as in its code, where the draw is the duel's first response, both are the policy's and
    the reference moves to the policy at every iteration. alpha there: .01, .005, 0. Population minimiser: no closed
    form; not convex.
    """
    return dpo(log_probs, label, kl_coef) + preference_optimism(draw(log_probs), label, kl_coef, alpha=alpha)


def copo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float, count: float | Tensor) -> Tensor:
    """Count-based online preference optimisation: DPO - alpha F(pi/pi_ref(draw)) / sqrt(count), the draw the
    reference's, count >= 1 how often it was seen (a number or one per duel).

    Source: Bai et al. 2025 (2501.12735) and its code, which estimates 1 / count by a coin-flip network, scales it by .1
    (in alpha here; alpha 1e-4) and moves the reference to the policy at every iteration; F as in `count_optimism`.
    Population minimiser: no closed form; not convex.
    """
    positive(count=count)
    bonus = count_optimism(draw(log_probs), label, kl_coef, alpha=alpha)
    return dpo(log_probs, label, kl_coef) + bonus / count**0.5


def depo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float, width: float | Tensor) -> Tensor:
    """Data-dependent exploration: DPO - alpha width F(pi(first) pi(second) / (pi_last(first) pi_last(second))), the
    pair drawn by the last policy, width the elliptical width of the *pair*, ||[phi(first); phi(second)]||_(V^-1) /
    sqrt(n).

    Source: 2605.04477, of which only the bonus could be read (coefficient .02), not how it enters the loss: here as
    COPO's, so that the policy's expected width over pairs grows (F as in `count_optimism`). Not convex. Population
    minimiser: DPO's where alpha or all widths are 0; else no closed form, with more mass on wide pairs than DPO's.
    """
    positive(alpha=alpha)
    non_negative(width=width)
    moved = (log_probs.now - log_probs.last)[..., :2].sum(-1)
    return dpo(log_probs, label, kl_coef) - alpha * width * exp(moved, cap=math.log(5.0))


def hypo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, kl_weight: float) -> Tensor:
    """Hybrid preference optimisation: DPO on offline pairs + kl_weight KL(pi || pi_ref) on an unlabelled draw of the
    last policy.

    Source: Song et al. 2024 (2406.01462). There the KL's gradient is RLOO's on fresh draws (the same mean) and the
    log-ratio gap is clipped at a value that could not be read: here a row's bound takes its place. Not 2602.11902, a
    reference's clipped gap of the same name. Population minimiser, tables: DPO's problem plus a KL ball's multiplier,
    no closed form; without the KL a response that no pair covers is left where it was.
    """
    non_negative(kl_weight=kl_weight)
    return dpo(log_probs, label, kl_coef) + kl_penalty(draw(log_probs), label, kl_coef, weight=kl_weight)


def spac(
    log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, step_size: float, preference_weight: float
) -> Tensor:
    """Self-play with an adversarial critic: preference_weight DPO(reference pi_last, coefficient 1 / step_size)
    + (log pi/pi_last(draw) - mean of log pi/pi_last over the duel's responses) / step_size.

    Source: Ji et al. 2024 (2406.04274): the critic r = log(pi/pi_last) / step_size minimises E_pi_last[r] - E_data[r] +
    preference_weight times the Bradley-Terry loss; their lambda is `preference_weight`, their eta `step_size`. The draw
    is the last policy's; the data's response is either of the duel's, here their mean (which one: not stated in what
    could be read). kl_coef plays no part. Convex in a table's logits. Population minimiser: no closed form.
    """
    data = critic(pair(log_probs), label, kl_coef, step_size=step_size, preference_weight=preference_weight)
    return data + self_play_penalty(draw(log_probs), label, kl_coef, step_size=step_size)


def aihf(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, demonstration_weight: float) -> Tensor:
    """Joint demonstrations and preferences: DPO - demonstration_weight log pi(draw), the draw a demonstration.

    Source: the direct form of 2406.06874's objective w1 E log pi_r(demonstration) + w2 E log sigma(r_w - r_l),
    pi_r = Gibbs(r): demonstration_weight = w1 / w2. Convex, and in r concave log-likelihoods: Fisher informations add.
    Population minimiser where demonstrations come from Gibbs(r) and labels are Bradley-Terry of the same r: Gibbs(r).
    """
    non_negative(demonstration_weight=demonstration_weight)
    return dpo(log_probs, label, kl_coef) - demonstration_weight * log_probs.now[..., 2]


def slic(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, margin: float, sft_weight: float) -> Tensor:
    """Sequence likelihood calibration: max(0, margin - log pi(winner) + log pi(loser)) - sft_weight log pi(draw), the
    draw a supervised target: no reference, and kl_coef plays no part.

    Source: Zhao et al. 2023 (2305.10425); values: not stated in what could be read. `hinge` is the normalised loss that
    later work calls SLiC. Population minimiser for sft_weight 0: log pi(first) - log pi(second) = margin sign(p - 1/2).
    """
    del kl_coef
    positive(margin=margin)
    non_negative(sft_weight=sft_weight)
    h = gap(log_probs.now)
    return either(label, torch.relu(margin - h), torch.relu(margin + h)) - sft_weight * log_probs.now[..., 2]


def tdpo2(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, alpha: float) -> Tensor:
    """Token-level DPO, second form, for responses of one token: -log sigma(kl_coef u - alpha kl_coef (d - d_last)),
    d = log pi_ref - log pi of a draw of the reference, whose mean is KL(pi_ref || pi).

    Source: Zeng et al. 2024 (2404.11999); there the margin is alpha kl_coef (D(loser) - sg[D(winner)]), D the forward
    KL summed along a response, which in a bandit is that of the context for both, so that the values cancel and only a
    gradient is left; sg is `last` here, the same at now = last. Without the stop-gradient (TDPO1) it cancels altogether
    and is `dpo`. Population minimiser: none in closed form; at now = last it pulls by alpha kl_coef sigma(-margin) grad
    KL(pi_ref || pi). Use with fresh data.
    """
    positive(alpha=alpha)
    m = kl_coef * log_ratio_gap(log_probs)
    drift = alpha * kl_coef * (log_probs.last - log_probs.now)[..., 2]
    return -either(label, logsigmoid(m - drift), logsigmoid(-m - drift))

"""Losses of a duel's log-ratio gap u = log(pi/pi_ref)(first) - log(pi/pi_ref)(second), or of gaps close to it.

p is the probability that the first response wins. Where a population minimiser is stated it is that of one pair, and,
because a normalised policy can take any gaps that are differences, of every policy where the values of the pairs are
consistent (a Bradley-Terry oracle, for the losses whose minimiser is logit p).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from simbandit.losses.forms import (
    by_winner,
    cross_entropy,
    either,
    exp,
    gap,
    log_ratio_gap,
    non_negative,
    positive,
    regression,
    rounded_relu,
    smoothing,
)
from simbandit.objective import PairLogProbs


def dpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Direct preference optimisation: -log sigma(m), m = kl_coef (log-ratio of the winner - log-ratio of the loser).

    Source: Rafailov et al. 2023 (2305.18290), eq. 7; their beta is `kl_coef`. Population minimiser: u = logit(p) /
    kl_coef, so the implied reward kl_coef log pi/pi_ref has differences logit(p); over all policies this is Gibbs of
    the Bradley-Terry MLE. Infinite where p is 0 or 1. Also the reverse-KL member of f-DPO and the logistic one of GPO.
    """
    return cross_entropy(kl_coef * log_ratio_gap(log_probs), label)


def cdpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, label_smoothing: float) -> Tensor:
    """Conservative DPO: the labels are flipped with probability eps = label_smoothing in [0, 1/2).

    -(1 - eps) log sigma(kl_coef u) - eps log sigma(-kl_coef u) for the winner's u. Source: a note by E. Mitchell, 2023
    (no arXiv id), restated in 2403.00409. Population minimiser: u = logit((1 - eps) p + eps (1 - p)) / kl_coef, finite
    for every p: it answers flipped labels by learning their rate, not the clean one's (`rdpo`). TRL's `sigmoid` no
    longer takes label_smoothing.
    """
    smoothing(label_smoothing)
    return dpo(log_probs, (1 - 2 * label_smoothing) * label + label_smoothing, kl_coef)


def rdpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, label_smoothing: float) -> Tensor:
    """Robust DPO: the unbiased estimate of DPO's loss from labels flipped with probability eps = label_smoothing.

    [(1 - eps) l(u) - eps l(-u)] / (1 - 2 eps), l = DPO's loss of the winner's u. Source: Ray Chowdhury et al. 2024
    (2403.00409); TRL `robust`. Population minimiser: u = logit((p - eps) / (1 - 2 eps)) / kl_coef for p in
    (eps, 1 - eps). Outside, in particular for every pair seen once, the loss falls without bound as u grows (its slope
    tends to -eps kl_coef / (1 - 2 eps)) and a fit needs its bound. Convex in u, as DPO's loss with any label is.
    """
    smoothing(label_smoothing)
    return dpo(log_probs, (label - label_smoothing) / (1 - 2 * label_smoothing), kl_coef)


def hinge(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, rounding: float = 0.0) -> Tensor:
    """max(0, 1 - kl_coef u) for the winner's u; its kink a parabola over |1 - kl_coef u| <= rounding, which Newton
    needs.

    Source: the hinge-norm loss of RSO (2309.06657), whose gamma is `kl_coef`; TRL `hinge`; `slic` is the loss that it
    normalises. Population minimiser: u = sign(p - 1/2) / kl_coef, whatever the size of p; not unique at p = 1/2.
    """
    non_negative(rounding=rounding)
    return by_winner(lambda m: rounded_relu(1 - m, rounding), kl_coef * log_ratio_gap(log_probs), label)


def ipo(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Identity preference optimisation: (h - 1 / (2 kl_coef))^2, h = log-ratio of the winner - log-ratio of the loser.

    Source: Azar et al. 2023 (2310.12036), eq. 17; their tau is `kl_coef`. Population minimiser: h = (2 p - 1) /
    (2 kl_coef) for one pair; under pairs drawn i.i.d. from q the best response to q, pi proportional to
    pi_ref exp(P(. beats q) / kl_coef). Online IPO and IPO-MD (2403.08635) are this loss on pairs of the policy itself
    or of its geometric mixture with the reference. TRL's DPOTrainer divides each log-ratio by its response's length
    first (a deviation from eq. 17 that its authors confirm); its online trainers do not. Also GPO's squared member.
    """
    return regression(log_ratio_gap(log_probs), 1 / (2 * kl_coef), label)


def exo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, label_smoothing: float) -> Tensor:
    """Efficient exact optimisation on pairs: KL((q, 1 - q) || (1 - eps, eps)), q = sigma(kl_coef u), the winner's u.

    Source: Ji et al. 2024 (2402.00856), eq. 16; eps = label_smoothing in (0, 1/2); TRL `exo_pair`. A reverse KL of
    choices. Population minimiser: u = (2 p - 1) log((1 - eps) / eps) / kl_coef. Not convex in u.
    """
    smoothing(label_smoothing, "(")
    m = kl_coef * log_ratio_gap(log_probs)
    win, lose = math.log1p(-label_smoothing), math.log(label_smoothing)
    entropy = torch.sigmoid(m) * logsigmoid(m) + torch.sigmoid(-m) * logsigmoid(-m)
    return entropy - by_winner(lambda m: torch.sigmoid(m) * win + torch.sigmoid(-m) * lose, m, label)


def discopop(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, temperature: float) -> Tensor:
    """DiscoPOP's log-ratio modulated loss: (1 - s) (-log sigma(v)) + s exp(-v), v = kl_coef u of the winner,
    s = sigma(v / temperature), temperature in (0, 1] (above 1 it falls back from infinity as v -> -inf).

    Source: Lu et al. 2024 (2406.08414), eq. 5, found by a language model; TRL `discopop`, temperature .05. No
    closed-form minimiser; the loss is not convex, and dips at v slightly below 0.
    """
    if not 0 < temperature <= 1:
        raise ValueError(f"temperature: must lie in (0, 1], got {temperature}")

    def loss(v: Tensor) -> Tensor:
        return -torch.sigmoid(-v / temperature) * logsigmoid(v) + exp(logsigmoid(v / temperature) - v)

    return by_winner(loss, kl_coef * log_ratio_gap(log_probs), label)


def gpo_exponential(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """exp(-kl_coef u) for the winner's u.

    Source: generalised preference optimisation (Tang et al. 2024, 2402.05749), the loss f(kl_coef u) for a convex f, of
    which only DPO, IPO and SLiC could be read there; this f and the next two are the standard surrogates of
    classification. Logistic f is `dpo`, hinge `hinge`, squared (1 - m)^2 is `ipo` at half the kl_coef. Population
    minimiser: u = logit(p) / (2 kl_coef). Beyond e^60 continued by its tangent.
    """
    return by_winner(lambda m: exp(-m), kl_coef * log_ratio_gap(log_probs), label)


def gpo_truncated_quadratic(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """max(0, 1 - kl_coef u)^2 for the winner's u. Source: as `gpo_exponential`. Population minimiser: u = (2 p - 1) /
    kl_coef; flat beyond 1 / kl_coef where p is 0 or 1."""
    return by_winner(lambda m: torch.relu(1 - m) ** 2, kl_coef * log_ratio_gap(log_probs), label)


def gpo_savage(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """1 / (1 + exp(kl_coef u))^2 for the winner's u. Source: as `gpo_exponential`; not convex. Population minimiser:
    u = logit(p) / kl_coef, as DPO's, with a bounded loss."""
    return by_winner(lambda m: torch.sigmoid(-m) ** 2, kl_coef * log_ratio_gap(log_probs), label)


def offset_dpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, margin: float | Tensor) -> Tensor:
    """-log sigma(kl_coef u - margin) for the winner's u; margin >= 0, a number or one per duel.

    Source: DPO with an offset (Amini et al. 2024, 2402.10571). Feature-level FPO (2411.07618) is this, with a margin
    made of the drift of the policy's features: a table has none, and there its margin is what is given here.
    Population minimiser: u = log(x) / kl_coef, x = [(2 p - 1) + sqrt((2 p - 1)^2 + 4 p (1 - p) e^(-2 margin))] /
    (2 (1 - p) e^(-margin)).
    """
    non_negative(margin=margin)
    return by_winner(lambda m: -logsigmoid(m - margin), kl_coef * log_ratio_gap(log_probs), label)


def simpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, margin: float | Tensor) -> Tensor:
    """-log sigma(kl_coef (log pi(winner) - log pi(loser)) - margin): no reference.

    Source: Meng et al. 2024 (2405.14734): their beta is `kl_coef`, their gamma `margin` (values beta 2.5, gamma
    1.375), and each log pi is divided by its response's length: pass length-averaged log-probs for that; TRL's CPO
    trainer does. Population minimiser: pi(first)/pi(second) = x^(1 / kl_coef), x as in `offset_dpo`: it ignores the
    reference, and so what the data do not cover, and collapses where p is 0 or 1.
    """
    non_negative(margin=margin)
    return by_winner(lambda m: -logsigmoid(m - margin), kl_coef * gap(log_probs.now), label)


def orpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, odds_weight: float) -> Tensor:
    """-log pi(winner) - odds_weight log sigma(log odds(winner) - log odds(loser)), odds = pi / (1 - pi): no reference.

    Source: Hong et al. 2024 (2403.07691), eqs. 4 and 7; their lambda (TRL's beta) is `odds_weight`; kl_coef plays no
    part. Their log pi is length-averaged, as in TRL: pass averages for that. Population minimiser on two arms: the root
    x = pi(first) of (p - x) + 2 odds_weight (p - x^2 / (x^2 + (1 - x)^2)) = 0, between p and its square-root odds.
    Odds are of at most 1 - 2^-52.
    """
    del kl_coef
    non_negative(odds_weight=odds_weight)
    now = log_probs.now[..., :2]
    certain = now.clamp(max=-torch.finfo(now.dtype).eps)
    odds = gap(now - torch.log(-torch.expm1(certain)))
    return -either(label, now[..., 0], now[..., 1]) + odds_weight * cross_entropy(odds, label)


def rpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, sft_weight: float) -> Tensor:
    """Regularised preference optimisation: DPO - sft_weight log pi(winner).

    Source: Liu et al. 2024 (2405.16436) with the chosen response as baseline (values: weight .005,
    beta .01). The same as `vpo_offline` with the winner as calibration draw and alpha = sft_weight / kl_coef, up to a
    constant. Population minimiser over all policies: no closed form; one pair (two arms): the root of
    kl_coef (sigma(kl_coef u) - p) = sft_weight (p - pi(first)).
    """
    non_negative(sft_weight=sft_weight)
    sft = either(label, log_probs.now[..., 0], log_probs.now[..., 1])
    return dpo(log_probs, label, kl_coef) - sft_weight * sft


def wpo(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """DPO weighted by how likely the policy itself finds the pair: pi_last(first) pi_last(second) times DPO's loss.

    Source: Zhou et al. 2024 (2406.11827), eq. 2, where the weight is the current policy's, detached: at now = last the
    gradient is theirs. Their weight is a length-averaged, aligned one (each token divided by sum_v pi(v)^2), which for
    responses of one token is a factor of the context. Population minimiser: DPO's for each pair by itself, the weights
    matter only where pairs disagree.
    """
    weight = exp(log_probs.last[..., 0] + log_probs.last[..., 1])
    return weight * dpo(log_probs, label, kl_coef)


def osp(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, sharpness: float) -> Tensor:
    """Soft self-preference: the cross-entropy of sigma(kl_coef u) with the last policy's own judgement
    q = sigma(sharpness kl_coef u_last). The oracle's label is not looked at.

    Source: 2405.14103 (its judge is a prompted model; a judge other than the policy is `dpo` with soft labels q).
    Population minimiser: u = sharpness u_last: at sharpness 1 every policy is a fixed point, above 1 it sharpens
    geometrically. How strong their pairs' judgements are: not stated in what could be read.
    """
    positive(sharpness=sharpness)
    last = kl_coef * (gap(log_probs.last) - gap(log_probs.ref))
    own = torch.sigmoid(sharpness * last)
    return dpo(log_probs, own + 0 * label, kl_coef)


def aot(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """Alignment by optimal transport, paired: DPO's loss of (sorted gaps of log pi) - (sorted gaps of log pi_ref), gaps
    being winner minus loser.

    Source: Melnyk et al. 2024 (2406.05882); TRL `aot`. The last axis of duels is the batch that is sorted, so a value
    depends on its neighbours and on the batch's size: fresh data and first-order steps only, no counts. A soft label
    is a duel split into its two outcomes with those weights; hard labels give the usual sort. Not affine in the label
    (it is in the weights between two changes of order). Of the policy it asks that gaps be *distributed* better than
    the reference's, not pair by pair: no minimiser per pair.
    """
    now, ref = gap(log_probs.now), gap(log_probs.ref)
    weight = torch.cat([label, 1 - label], dim=-1)
    return _transport(torch.cat([now, -now], -1), torch.cat([ref, -ref], -1), weight, weight, kl_coef)


def aot_unpaired(log_probs: PairLogProbs, label: Tensor, kl_coef: float) -> Tensor:
    """As `aot`, of (sorted log-ratios of winners) - (sorted log-ratios of losers). Source: as `aot`; TRL
    `aot_unpaired`. Two responses of different duels meet in one term. Population minimiser: none per pair, as `aot`."""
    first, second = (log_probs.now - log_probs.ref)[..., :2].unbind(-1)
    weight = torch.cat([label, 1 - label], dim=-1)
    return _transport(torch.cat([first, second], -1), torch.cat([second, first], -1), weight, weight, kl_coef)


def _transport(a: Tensor, b: Tensor, weight_a: Tensor, weight_b: Tensor, kl_coef: float) -> Tensor:
    """Sum over the quantile coupling of two weighted samples (..., 2 n) of -log sigma(kl_coef (a - b)), credited to the
    duel that a came from: (..., n)."""
    shape = torch.broadcast_shapes(a.shape, b.shape, weight_a.shape)
    a, b, weight_a, weight_b = (x.expand(shape) for x in (a, b, weight_a, weight_b))
    order_a, order_b = a.argsort(dim=-1, stable=True), b.argsort(dim=-1, stable=True)
    mass_a, mass_b = weight_a.gather(-1, order_a).cumsum(-1), weight_b.gather(-1, order_b).cumsum(-1)
    edges = torch.cat([mass_a, mass_b], dim=-1).sort(dim=-1).values
    width = torch.diff(edges, dim=-1, prepend=torch.zeros_like(edges[..., :1]))
    middle = edges - width / 2
    last = shape[-1] - 1
    at_a = order_a.gather(-1, torch.searchsorted(mass_a.contiguous(), middle.contiguous()).clamp(max=last))
    at_b = order_b.gather(-1, torch.searchsorted(mass_b.contiguous(), middle.contiguous()).clamp(max=last))
    value = -width * logsigmoid(kl_coef * (a.gather(-1, at_a) - b.gather(-1, at_b)))
    n = shape[-1] // 2
    return value.new_zeros(*shape[:-1], n).scatter_add(-1, at_a % n, value)

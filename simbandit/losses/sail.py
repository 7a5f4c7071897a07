"""SAIL: DPO on the policy's own pairs, with the gradient through the law that draws them (2406.15567).

The upper level maximises J(pi) = E_{pairs ~ pi, z ~ labels} log sigma(kl_coef u_z); its gradient is T1 + T2, T2 that of
on-policy DPO and T1 = E[log sigma(kl_coef u_z) (grad log pi(first) + grad log pi(second))]. Here the law enters by
importance weights against the last policy, which drew the pair:

    loss = (pi/pi_last)(first)^coef (pi/pi_last)(second)^coef (-log sigma(kl_coef u_z)),

whose gradient at now = last is -(T2 + coef T1): coef 1 is SAIL's, 0 on-policy DPO; fresh data only. Its own last
policy is not its minimiser (a loss >= 0 whose weight can be driven to 0 has none): it is a gradient, to be followed by
steps, and `Descent` says how many.

The Gibbs policy of the true reward is stationary for T2 but not for T1 + T2: the bilevel objective also rewards
policies whose pairs are easy to predict. The bias vanishes as kl_coef grows.

Designs: pairs of the data with the policy's own labels (`sail_dp`), pairs of the policy with its own labels
(`sail_pp`), and pairs of the policy with outside labels (`sail_pr`). In the paper a share of a batch takes the design
(repository: .4, .3, .3) and the rest is offline DPO: a row's mixture, but for `sail_dp`, whose pairs are the same.
The repository (commit c3a4ef3) deviates in three ways from its own derivation in PR, each a function of its own here
and never used otherwise: `sail_reversed_sign`, `sail_scaled`, `sail_unscaled_batch`; `sail_released` has all three.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from simbandit.losses.forms import cross_entropy, divergence, exp, gap, log_ratio_gap, non_negative
from simbandit.losses.pairs import dpo
from simbandit.objective import PairLogProbs


def _moved(log_probs: PairLogProbs) -> Tensor:
    return (log_probs.now - log_probs.last)[..., :2]


def _own(log_probs: PairLogProbs, kl_coef: float, coef: float, moved: Tensor | float) -> Tensor:
    """Expectation over labels of the last policy's own preference, with their law's importance weights and those of
    `moved`."""
    m, m_last = kl_coef * log_ratio_gap(log_probs), kl_coef * (gap(log_probs.last) - gap(log_probs.ref))

    def outcome(now: Tensor, last: Tensor) -> Tensor:
        log_p, log_p_last = logsigmoid(now), logsigmoid(last)
        return -exp(coef * (moved + log_p) + (1 - coef) * log_p_last) * log_p

    return outcome(m, m_last) + outcome(-m, -m_last)


def sail_pr(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, coef: float) -> Tensor:
    """SAIL-PR: the policy's pairs, outside labels (the oracle's); full gradient at coef = 1, see the module.

    Repository: coef .3, labels the argmax of a reward model. Source: 2406.15567. Population minimiser: none, a
    gradient at now = last; stationary where T1 + T2 = 0, which for small kl_coef is not the Gibbs policy.
    """
    non_negative(coef=coef)
    return exp(coef * _moved(log_probs).sum(-1)) * dpo(log_probs, label, kl_coef)


def sail_pp(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, coef: float) -> Tensor:
    """SAIL-PP: the policy's pairs and the policy's own labels, Bernoulli(sigma(kl_coef u)), in expectation; the label
    argument is not looked at. T2 has mean zero (`dpo` labelled by itself learns nothing), so coef 0 has no gradient;
    coef 1 descends the expected binary entropy of the policy's own choices. Repository: coef .2, sampled labels.
    Source: 2406.15567. Population minimiser: none, as `sail_pr`.
    """
    non_negative(coef=coef)
    return _own(log_probs, kl_coef, coef, _moved(log_probs).sum(-1)) + 0 * label


def sail_dp(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, coef: float, mixture: float) -> Tensor:
    """SAIL-DP: the data's pairs, a share `mixture` of them with the policy's own labels (in expectation), the others
    with the data's: (1 - mixture) DPO + mixture times the own-label loss, whose law is that of labels alone.

    Repository: mixture .4, coef .2, and -l - coef l^2 / 2, l = log sigma(kl_coef u_z), for a sampled label: the same
    gradient at now = last, but not bounded below (for l < -1/coef its slope changes sign). Stationary point on two
    arms: (1 - mixture) (p - sigma(D)) + mixture coef D sigma(D) sigma(-D) = 0, D = kl_coef u: margins beyond logit p.
    Source: 2406.15567. Population minimiser: none beyond that point, see the module.
    """
    non_negative(coef=coef)
    if not 0 <= mixture <= 1:
        raise ValueError(f"mixture: must lie in [0, 1], got {mixture}")
    return (1 - mixture) * dpo(log_probs, label, kl_coef) + mixture * _own(log_probs, kl_coef, coef, 0.0)


def sail_rev_kl(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, coef: float, kl_weight: float) -> Tensor:
    """SAIL-RevKL: `sail_pr` + kl_weight KL(pi || pi_ref), estimated on the same two responses. Source: 2606.31524 (its
    gamma is kl_weight; read in abstract only). A large kl_weight makes the stationary point unique and draws it to
    pi_ref. Population minimiser: none, as `sail_pr`."""
    non_negative(kl_weight=kl_weight)
    penalty = divergence(log_probs)[..., :2].mean(-1)
    return sail_pr(log_probs, label, kl_coef, coef=coef) + kl_weight * penalty


# -------------------------------------------------------------------------- the released code's deviations, one by one


def sail_reversed_sign(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, coef: float) -> Tensor:
    """T2 - coef T1: the released hook adds coef l / log pi >= 0 with the sign that *raises* both log-probs of badly
    predicted pairs; here the sign alone.
    Source: the repository (module). Population minimiser: none, as `sail_pr`."""
    non_negative(coef=coef)
    return exp(-coef * _moved(log_probs).sum(-1)) * dpo(log_probs, label, kl_coef)


def sail_scaled(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, coef: float) -> Tensor:
    """T1's part of each response divided by |log pi(response)|, as the released hook does, with the right sign.
    Log-probs are taken to be below -1e-12.
    Source: the repository (module). Population minimiser: none, as `sail_pr`."""
    non_negative(coef=coef)
    scale = log_probs.last[..., :2].clamp(max=-1e-12).abs()
    return exp(coef * (_moved(log_probs) / scale).sum(-1)) * dpo(log_probs, label, kl_coef)


def sail_unscaled_batch(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, coef: float) -> Tensor:
    """T1 times the number of duels (last axis): the released hook is added to the gradient of a batch *mean* without
    being divided by the batch's size itself. (A sum of these losses is that gradient times the size.)
    Source: the repository (module). Population minimiser: none, as `sail_pr`."""
    return sail_pr(log_probs, label, kl_coef, coef=coef * label.shape[-1])


def sail_released(log_probs: PairLogProbs, label: Tensor, kl_coef: float, *, coef: float) -> Tensor:
    """All three: DPO + coef B sum over both responses of (log sigma(kl_coef u_z) at last / |log pi_last|) log pi, whose
    gradient at now = last is B times the released one's of the batch mean. A sum over both labels where they are
    soft.
    Source: the repository (module). Population minimiser: none, as `sail_pr`."""
    non_negative(coef=coef)
    last, size = log_probs.last[..., :2], label.shape[-1]
    loss = cross_entropy(kl_coef * (gap(last) - gap(log_probs.ref)), label)
    pull = loss * (log_probs.now[..., :2] / last.clamp(max=-1e-12).abs()).sum(-1)
    return dpo(log_probs, label, kl_coef) - coef * size * pull

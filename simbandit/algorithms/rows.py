"""The rows of `Direct` that play games by fitting a loss; `losses` states each formula and its population minimiser.

g(q) = P(. beats q) - 1/2, s = step_size; omega as in `algorithms.games`, whose exact steps these rows estimate.

online_ipo: IPO on pairs of pi_t (2403.08635, their tau is kl_coef). Its stationary point is the KL-regularised
    equilibrium (their Proposition 4.1). Deviation: the paper takes a gradient step on fresh pairs; here the argmin on
    all duels so far, with policies of the past as opponents, which converges locally for every kl_coef (a mode decays
    as t^(-1 + i omega / kl_coef)). With data="fresh" it is iterated best response, stable only for kl_coef > omega.
ipo_md: the same on pairs of the geometric mixture pi_t^(1 - b) pi_ref^b, b = reference_weight (2403.08635; .125 is
    their choice for language models). The mixture, not pi_t, tends to the equilibrium: of coefficient
    kl_coef / (1 - b) (their Proposition 5.2). Deviation as above; the mixture is of whole responses, not by token.
onpo: ONPO (2502.16852): kept <- kept exp(s g(pi)), then pi <- kept exp(s g(pi)) with the same duels. Unregularised
    game; s = 1/2 is the constant of their Theorem 2, and last-iterate convergence (Theorem 3) is for s <= 1/8.
spo: SPO (2401.04056) as a regression: pi <- pi exp(s g(pi)), the unregularised game. The *average* of the policies
    has gap O(1 / sqrt T) for s of order 1 / sqrt T; the last spirals out. Deviation: win rates of this round's duels,
    not of a queue, and an argmin in place of a policy-gradient step.
sppo: SPPO (2405.00675): spo's step by the pointwise loss, whose offset makes it differ beyond first order in s.
dno: DNO (2404.03715), Algorithm 1: spo's step by soft cross-entropy on estimated win rates. Their r is exact or from a
    preference model; here the share of this round's duels won. labels="duel" is the paired form (DNO-Prct without its
    filter and its larger margin).
rspo: RSPO (2503.00030) with reverse KL: the regularised game, implicit in the divergence. The other divergences are
    create("rspo", loss="rspo_forward_kl") and "rspo_chi_squared".

All but online_ipo and ipo_md estimate their step from one round's duels, so that with a constant step_size the policy
ends at a noise floor: more duels a round (batch_size) or, for `inpo` and `rspo`, schedule=True lower it.
"""

from __future__ import annotations

from simbandit.algorithms.direct import Direct, Labels


def _self_play(loss: str, *, optimistic: bool = False, labels: Labels = "duel") -> Direct:
    """Fresh pairs of the policy itself, fitted around it; kl_coef enters by the loss alone."""
    return Direct(
        loss=loss,
        data="fresh",
        labels=labels,
        anchor="last",
        optimistic=optimistic,
        loss_parameters=(("step_size", 0.5),),
        value_range="unbounded",
    )


GAMES: dict[str, Direct] = {
    "online_ipo": Direct(loss="ipo", value_range="unbounded"),
    "ipo_md": Direct(loss="ipo", players=("mixture", "mixture"), reference_weight=0.125, value_range="unbounded"),
    "onpo": _self_play("onpo", optimistic=True),
    "spo": _self_play("onpo"),
    "sppo": _self_play("sppo"),
    "dno": _self_play("dno", labels="win_rate"),
    "rspo": _self_play("rspo_reverse_kl"),
}

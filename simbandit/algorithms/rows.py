"""The rows of `Direct`: GAMES, which play games by fitting a loss, and ALIGNMENT, preference optimisation towards a
reward. `losses` states each formula and its population minimiser; here stands who plays, which data, which reference.

GAMES. g(q) = P(. beats q) - 1/2, s = step_size; omega as in `algorithms.games`, whose exact steps these rows estimate.

online_ipo: IPO on pairs of pi_t (2403.08635, their tau is kl_coef). Its stationary point is the KL-regularised
    equilibrium (their Proposition 4.1). Deviation: the paper takes a gradient step on fresh pairs; here the argmin on
    all duels so far, with policies of the past as opponents, which converges locally for every kl_coef (a mode decays
    as t^(-1 + i omega / kl_coef)). With data="fresh" it is iterated best response, stable only for kl_coef > omega.
ipo_md: the same on pairs of the geometric mixture pi_t^(1 - b) pi_ref^b, players Tilt(1 - b, b) (2403.08635; b = .125
    is their choice for language models). The mixture, not pi_t, tends to the equilibrium: of coefficient
    kl_coef / (1 - b) (their Proposition 5.2). Deviation as above; the mixture is of whole responses, not by token.
inpo: INPO (2407.00617), eq. 8: a mirror-descent step on fresh pairs of pi_t; s = 1 by default.
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

ALIGNMENT. The first seven fit logged duels once; `create("dpo", loss="cdpo", label_smoothing=.1)` and the like give the
other losses of `losses` (rdpo, exo, discopop, orpo, bco, nca, kto, ...), and data="all" their online forms.

dpo, ipo, rpo, chi_po, simpo: their loss. slic: the hinge on the log-ratio gap (RSO's hinge-norm, 2309.06657), its kink
    rounded over .001 so that Newton ends; SLiC-HF's own loss (2305.10425) has no reference (`losses.slic`).
vpo_offline: VPO with the pessimistic sign (2405.19320): DPO - alpha kl_coef E log pi/pi_ref, the expectation over the
    reference. With the chosen response for calibration it is `rpo`.
hypo: DPO on logged duels + weight KL(pi || pi_ref) per duel (2406.01462), the KL in expectation over all actions.
spac: SPAC (2406.04274): ten passes over the logged duels, each DPO around the policy of the last, which its own
    responses are pushed down from and the data's up.
online_dpo: DPO on pairs of pi_t, all duels so far. iterative_dpo: fresh pairs, and the reference moves to pi_t every
    round; reference="fixed" is the other reading of the name.
xpo: XPO (2405.21046), Algorithm 1: pairs of pi_t and the reference, DPO + alpha log pi of the second response; alpha is
    .01 per duel (the paper gives none), the argmin over all duels. Guarantee: J(pi*) - J(best iterate) of order
    V_max e^(2 R_max) sqrt(C_cov log|Pi| / T), C_cov the coverability of the class, where pi* is in the class and
    kl_coef |log-ratio| <= V_max; "output" best by validation is theirs, the last policy is the default here.
vpo: VPO online (2405.19320): DPO on pairs of pi_t + alpha kl_coef E log pi/pi_ref, *one* expectation however many
    duels, over the reference (the paper leaves the calibration policy to the user); alpha 1. calibration="reference"
    estimates it by one draw a duel, which a policy that cannot list its actions needs.
    The paper's bandit takes 20 AdamW steps a round: descent=Descent(20, .01, .01).
selm: SELM (2405.19332): DPO on fresh pairs of pi_t + alpha kl_coef log pi/pi_ref of the greedy response, and the
    reference moves to pi_t. Deviation: both responses are drawn, where the paper ranks three by a reward model.
copo: COPO (2501.12735): DPO on pairs of pi_t, and the policy's expected N(x, a)^-1/2 is raised (alpha), in
    expectation over the reference. Deviation: exact counts, all data and a fixed reference, which their code moves.
se_popo: SE-POPO (2502.00666): pi_t against a sampler that moves to pi_t every 8 rounds; optimism about the probability
    of being preferred to the sampler's draw. Deviation: all data and a fixed reference.
sail_dp: SAIL-DP (2406.15567): logged pairs, a share of them labelled by the policy itself: 200 gradient steps.
sail_pp, sail_pr: a gradient step a round on fresh pairs of pi_t, labelled by itself (pp) or by the oracle (pr), with
    the gradient through the sampling law (coef); where there are logged duels, they are 70 % of the weight, by DPO.
    Shares and coefs are the repository's. learning_rate is ours, per duel, on log-ratios.
"""

from __future__ import annotations

from simbandit.algorithms.direct import Direct, Expected, Labels, Moving
from simbandit.algorithms.players import Held, Tilt
from simbandit.objective import Descent


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
    "ipo_md": Direct(loss="ipo", players=(Tilt(0.875, 0.125), Tilt(0.875, 0.125)), value_range="unbounded"),
    "inpo": Direct(loss="inpo", data="fresh", anchor="mirror", loss_parameters=(("step_size", 1.0),)),
    "onpo": _self_play("onpo", optimistic=True),
    "spo": _self_play("onpo"),
    "sppo": _self_play("sppo"),
    "dno": _self_play("dno", labels="win_rate"),
    "rspo": _self_play("rspo_reverse_kl"),
}


def _offline(loss: str, **parameters: float) -> Direct:
    return Direct(loss=loss, data="offline", loss_parameters=tuple(sorted(parameters.items())))


def _alpha(value: float) -> tuple[tuple[str, float], ...]:
    return (("alpha", value),)


_STEP = Descent(1, 1.0, optimiser="sgd")


ALIGNMENT: dict[str, Direct] = {
    "dpo": _offline("dpo"),
    "ipo": Direct(loss="ipo", data="offline", value_range="unbounded"),
    "slic": _offline("hinge", rounding=1e-3),
    "rpo": _offline("rpo", sft_weight=0.005),
    "chi_po": _offline("chi_po", clip=4.0, rounding=0.05),
    "simpo": _offline("simpo", margin=0.0),
    "vpo_offline": Direct(
        data="offline",
        bonus="value_pessimism",
        bonus_parameters=_alpha(1.0),
        calibration=Expected("reference"),
        weighting="mean",
    ),
    "hypo": Direct(
        data="offline", bonus="kl_penalty", bonus_parameters=(("weight", 0.01),), calibration=Expected("current")
    ),
    "spac": Direct(
        loss="critic",
        loss_parameters=(("preference_weight", 1.0), ("step_size", 1.0)),
        data="offline",
        bonus="self_play_penalty",
        bonus_parameters=(("step_size", 1.0),),
        calibration=Expected("current"),
        passes=10,
    ),
    "online_dpo": Direct(),
    "iterative_dpo": Direct(data="fresh", reference=Moving()),
    "xpo": Direct(players=("current", "reference"), bonus="optimism", bonus_parameters=_alpha(0.01)),
    "vpo": Direct(
        bonus="value_optimism", bonus_parameters=_alpha(1.0), calibration=Expected("reference"), weighting="mean"
    ),
    "selm": Direct(
        data="fresh",
        reference=Moving(),
        bonus="value_optimism",
        bonus_parameters=_alpha(0.01),
        calibration="argmax",
    ),
    "copo": Direct(
        bonus="count_optimism", bonus_parameters=_alpha(0.1), calibration=Expected("reference"), weighting="rarity"
    ),
    "se_popo": Direct(players=("current", Held(8)), bonus="preference_optimism", bonus_parameters=_alpha(0.1)),
    "sail_dp": Direct(
        loss="sail_dp", loss_parameters=(("coef", 0.2), ("mixture", 0.4)), data="offline", passes=200, descent=_STEP
    ),
    "sail_pp": Direct(
        data="fresh", loss="sail_pp", loss_parameters=(("coef", 0.2),), hybrid=0.7, hybrid_loss="dpo", descent=_STEP
    ),
    "sail_pr": Direct(
        data="fresh", loss="sail_pr", loss_parameters=(("coef", 0.3),), hybrid=0.7, hybrid_loss="dpo", descent=_STEP
    ),
}

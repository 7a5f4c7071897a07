"""Published and derived numbers of direct preference losses: population minimisers, SAIL's table, chi-PO's policies."""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from simbandit import losses
from simbandit.fits import fit_tabular
from simbandit.objective import DuelObjective, PairLogProbs, Term
from simbandit.policies import gibbs, lambert_w_exp
from simbandit.types import Contexts

KL = 0.6


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=float))


def logit(p):
    return math.log(p / (1 - p))


def fitted(
    loss: Any, preference: Tensor, ref: Tensor, kl_coef: float = KL, start: Any = None, box: Any = (0.0, math.inf)
) -> Tensor:
    """log-probs (A,) of the exact fit to every ordered pair of actions, of equal weight, with labels preference (A, A);
    ref (A,). Identical pairs are left out; box: weight of the proximal term and bound."""
    A = len(ref)
    actions = torch.tensor([[i, j] for i, j in product(range(A), range(A)) if i != j])
    label = preference[actions[:, 0], actions[:, 1]]
    stored = ref[actions]
    objective = DuelObjective(
        contexts=Contexts(index=torch.zeros(1, 1).long(), ref_log_probs=ref.view(1, 1, A)),
        terms=(
            Term(
                row=torch.zeros(1, len(label)).long(),
                actions=actions[None],
                weight=torch.ones(1, len(label)).double(),
                label=label[None],
                last=stored[None],
                ref=stored[None],
                loss=loss,
            ),
        ),
        kl_coef=kl_coef,
        anchored=lambda contexts: ref.view(1, 1, A),
        proximal=box[0],
        bound=box[1],
    )
    table, info = fit_tabular((ref if start is None else start).view(1, 1, A), objective)
    assert info.converged.all()
    return table[0, 0]


def minimiser(mean: Any, reach: float) -> float:
    """Golden-section search, which resolves the argument to the square root of rounding: about 1e-7."""
    found: Any = optimize.minimize_scalar(mean, bounds=(-reach, reach), method="bounded", options={"xatol": 1e-9})
    return float(found.x)


def two_arms(p: float) -> Tensor:
    return tensor([[0.5, p], [1 - p, 0.5]])


REF2 = tensor([0.3, 0.7]).log()


def fitted_gap(loss: Any, p: float, kl_coef: float = KL, box: tuple[float, float] = (0.0, math.inf)) -> float:
    h = fitted(loss, two_arms(p), REF2, kl_coef, box=box) - REF2
    return float(h[0] - h[1])


# ------------------------------------------------------------------------------- pair losses: the fit itself, to 1e-6


def simpo_odds(p, margin):
    """x of SimPO's minimiser pi(first)/pi(second) = x^(1 / kl_coef)."""
    a, b = 2 * p - 1, 4 * p * (1 - p) * math.exp(-2 * margin)
    return (a + math.sqrt(a**2 + b)) / (2 * (1 - p) * math.exp(-margin))


PAIR: dict[str, tuple[Any, Any]] = {
    "dpo": (losses.dpo, lambda p: logit(p) / KL),
    "cdpo": (partial(losses.cdpo, label_smoothing=0.2), lambda p: logit(0.8 * p + 0.2 * (1 - p)) / KL),
    "rdpo": (partial(losses.rdpo, label_smoothing=0.1), lambda p: logit((p - 0.1) / 0.8) / KL),
    "ipo": (losses.ipo, lambda p: (2 * p - 1) / (2 * KL)),
    "exo": (partial(losses.exo, label_smoothing=0.1), lambda p: (2 * p - 1) * math.log(9.0) / KL),
    "gpo_exponential": (losses.gpo_exponential, lambda p: logit(p) / (2 * KL)),
    "gpo_truncated_quadratic": (losses.gpo_truncated_quadratic, lambda p: (2 * p - 1) / KL),
    "gpo_savage": (losses.gpo_savage, lambda p: logit(p) / KL),
    "offset_dpo": (partial(losses.offset_dpo, margin=0.4), lambda p: math.log(simpo_odds(p, 0.4)) / KL),
    "wpo": (losses.wpo, lambda p: logit(p) / KL),
}


@pytest.mark.parametrize("p", [0.2, 0.65, 0.85])
@pytest.mark.parametrize("name", PAIR)
def test_population_minimisers_of_pair_losses(name, p):
    loss, closed_form = PAIR[name]
    assert fitted_gap(loss, p) == pytest.approx(closed_form(p), abs=1e-6)


def test_simpo_ignores_the_reference():
    loss = partial(losses.simpo, margin=1.375)
    pi = fitted(loss, two_arms(0.8), REF2, 2.5)
    assert float(pi[0] - pi[1]) == pytest.approx(math.log(simpo_odds(0.8, 1.375)) / 2.5, abs=1e-6)
    assert float(pi[0] - pi[1]) == pytest.approx(1.0004, abs=5e-5)  # the digits that are printed
    assert simpo_odds(0.8, 0.0) == pytest.approx(4.0)


@pytest.mark.parametrize("p", [0.2, 0.65])
def test_hinge_learns_a_margin_and_not_a_probability(p):
    def mean(u):
        now = tensor([[u, 0.0]])
        return float(losses.hinge(PairLogProbs(now, now, 0 * now), tensor([p]), KL))

    best = minimiser(mean, 5)
    assert best == pytest.approx(math.copysign(1 / KL, p - 0.5), abs=1e-4)
    rounded = partial(losses.hinge, rounding=1e-5)  # where it is linear, the fit needs a bound and a proximal term
    assert fitted_gap(rounded, p, box=(1e-6, 4.0)) == pytest.approx(math.copysign(1 / KL, p - 0.5), abs=1e-4)


@pytest.mark.parametrize(("name", "weight"), [("rpo", 0.3), ("orpo", 0.7)])
def test_losses_with_a_likelihood_term_balance_it(name, weight):
    """The stationarity conditions on two arms that the docstrings state; x = pi(first)."""
    p = 0.8
    own = {"rpo": {"sft_weight": weight}, "orpo": {"odds_weight": weight}}[name]
    x = float(fitted(partial(getattr(losses, name), **own), two_arms(p), REF2).exp()[0])
    if name == "rpo":
        u = logit(x) - logit(0.3)
        balance = KL * (1 / (1 + math.exp(-KL * u)) - p) - weight * (p - x)
    else:
        balance = (p - x) + 2 * weight * (p - x**2 / (x**2 + (1 - x) ** 2))
        assert logit(p) / 2 < logit(x) < logit(p)
    assert balance == pytest.approx(0.0, abs=1e-6)


def test_flipped_labels():
    """P* = .9 seen through flips of 20 %: a win rate of .74."""
    seen = 0.9 * 0.8 + 0.1 * 0.2
    assert seen == pytest.approx(0.74)
    learnt = {
        "dpo": fitted_gap(losses.dpo, seen, 1.0),
        "cdpo": fitted_gap(partial(losses.cdpo, label_smoothing=0.2), seen, 1.0),
        "rdpo": fitted_gap(partial(losses.rdpo, label_smoothing=0.2), seen, 1.0),
    }
    assert learnt == pytest.approx({"dpo": 1.046, "cdpo": 0.593, "rdpo": 2.197}, abs=5e-4)
    assert learnt["rdpo"] == pytest.approx(logit(0.9), abs=1e-6)


def test_robust_dpo_falls_without_bound_beyond_its_smoothing_and_is_convex_all_the_same():
    u = torch.linspace(-40, 40, 2001, dtype=torch.float64)
    now = torch.stack([u, 0 * u], dim=-1)
    for label, fine in ((0.85, True), (0.95, False), (1.0, False)):
        pair = PairLogProbs(now, now, 0 * now)
        value = losses.rdpo(pair, 0 * u + label, 1.0, label_smoothing=0.1)
        assert bool(value.diff()[-1] > 0) == fine
        assert (value.diff().diff() > -1e-12).all()


def test_ipo_keeps_a_deterministic_preference_finite():
    for tau, published in ((0.1, 0.9933), (0.5, 0.7311), (1.0, 0.6225)):
        pi = fitted(losses.ipo, two_arms(1.0), tensor([0.5, 0.5]).log(), tau).exp()
        assert float(pi[0]) == pytest.approx(published, abs=5e-5)
        assert float(pi[0]) == pytest.approx(1 / (1 + math.exp(-1 / (2 * tau))), abs=1e-9)


def test_dpo_over_all_policies_is_gibbs_of_the_maximum_likelihood():
    """Counts that no Bradley-Terry model fits: the MLE by an independent optimiser."""
    p = tensor([[0.5, 0.8, 0.6], [0.2, 0.5, 0.9], [0.4, 0.1, 0.5]])
    ref = tensor([0.2, 0.5, 0.3]).log()

    def minus_likelihood(r):
        d = r[:, None] - r[None, :]
        return float((p.numpy() * np.logaddexp(0, -d)).sum())

    found: Any = optimize.minimize(minus_likelihood, np.zeros(3), tol=1e-14)
    torch.testing.assert_close(fitted(losses.dpo, p, ref), gibbs(tensor(found.x), ref, KL), rtol=0, atol=1e-6)


# -------------------------------------------------------------------------------------- pointwise, normalised or not


def unnormalised(loss: Any, w: float, kl_coef: float) -> float:
    """Minimiser over the log-ratio a of one response, of a duel with another whose a is held at 0; label w."""

    def mean(a):
        now = tensor([[a, 0.0]])
        return float(loss(PairLogProbs(now, 0 * now, 0 * now), tensor([w]), kl_coef))

    return minimiser(mean, 30)


@pytest.mark.parametrize("w", [0.2, 0.65])
def test_pointwise_minimisers_over_unnormalised_log_ratios(w):
    assert unnormalised(losses.bco, w, KL) == pytest.approx(logit(w) / KL, abs=1e-6)
    assert unnormalised(losses.nca, w, KL) == pytest.approx(math.log(2 * w) / KL, abs=1e-6)
    sppo = partial(losses.sppo, step_size=1 / KL)
    assert unnormalised(sppo, w, KL) == pytest.approx((2 * w - 1) / (2 * KL), abs=1e-6)


def test_pointwise_fits_of_a_normalised_policy():
    """Two arms, p = .8, kl_coef 1: against an independent optimiser and the printed digits."""
    uniform, skewed = tensor([0.5, 0.5]).log(), tensor([0.2, 0.8]).log()
    cases = [
        (losses.bco, uniform, 2.091),
        (partial(losses.sppo, step_size=1.0), uniform, 0.577),
        (losses.nca, uniform, 1.386),
        (losses.nca, skewed, None),
    ]
    for loss, ref, printed in cases:
        h = fitted(loss, two_arms(0.8), ref, 1.0) - ref
        gap = float(h[0] - h[1])

        def mean(u, loss=loss, ref=ref):
            now = torch.log_softmax(ref + tensor([u, 0.0]), -1)[None]
            return float(loss(PairLogProbs(now, ref[None], ref[None]), tensor([0.8]), 1.0))

        assert gap == pytest.approx(minimiser(mean, 5), abs=1e-6)
        if printed is None:
            assert abs(gap - logit(0.8)) > 0.01  # the table's gap holds for a uniform reference alone
        else:
            assert gap == pytest.approx(printed, abs=5e-4)


KTO = {"desirable_weight": 1.0, "undesirable_weight": 1.0, "reference_point": 0.0}


@pytest.mark.parametrize("name", ["apo_zero", "kto"])
@pytest.mark.parametrize("w", [0.3, 0.51])
def test_majority_votes_have_no_minimiser(name, w):
    loss = losses.apo_zero if name == "apo_zero" else partial(losses.kto, **KTO)
    a = math.copysign(1.0, w - 0.5) * torch.linspace(-20, 20, 401, dtype=torch.float64)
    now = torch.stack([a, 0 * a], dim=-1)
    value = loss(PairLogProbs(now, now, 0 * now), 0 * a + w, 1.0)
    assert (value.diff() < 0).all()  # falls all the way to infinity


def test_the_threshold_of_kto_is_the_weighted_win_rate():
    def slope(w, **own):
        now = tensor([[0.4, 0.0]]).requires_grad_(True)
        still = now.detach()
        value = losses.kto(PairLogProbs(now, still, 0 * still), tensor([w]), 1.0, **{**KTO, **own}).sum()
        return float(torch.autograd.grad(value, now)[0][0, 0])

    assert slope(0.45) > 0 > slope(0.55)
    assert slope(0.45, desirable_weight=1.3) < 0  # 1.3 * .45 > .55
    assert slope(0.55, undesirable_weight=1.3) > 0


def test_apo_down_falls_for_ever():
    t = torch.linspace(0, 30, 301, dtype=torch.float64)
    now = torch.stack([-t, -3 * t], dim=-1)
    value = losses.apo_down(PairLogProbs(now, now, 0 * now), 0 * t + 1, 1.0)
    assert (value.diff()[5:] < 0).all()
    assert float(value[-1]) < 1e-12


# ----------------------------------------------------------------------------------------------------- other links

REWARDS, REF5 = tensor([1, 0.8, 0.5, 0, -0.5]), tensor([0.05, 0.15, 0.3, 0.3, 0.2]).log()


def bradley_terry(rewards: Tensor) -> Tensor:
    return torch.sigmoid(rewards[:, None] - rewards[None, :])


@pytest.mark.parametrize(
    ("name", "own", "link"),
    [
        ("f_dpo_forward_kl", {}, lambda t: -1 / t),
        ("f_dpo_js", {}, lambda t: torch.log(2 * t / (1 + t))),
        ("f_dpo_alpha", {"alpha": 0.4}, lambda t: (1 - t**-0.4) / 0.4),
        ("chi_po", {"clip": 4.0}, lambda t: t + t.log()),
        ("dpo", {}, torch.log),
    ],
)
def test_links_reach_the_optimum_of_their_penalty(name, own, link):
    """kl_coef f'(pi/pi_ref) has the rewards' differences, for the normalised policy that the fit itself finds."""
    ratio = (fitted(partial(getattr(losses, name), **own), bradley_terry(REWARDS), REF5) - REF5).exp()
    implied = KL * link(ratio)
    torch.testing.assert_close(implied - implied[0], REWARDS - REWARDS[0], rtol=0, atol=1e-6)


def test_chi_po_published_policies():
    """Mixed chi-squared and KL penalty against KL: ratios 4.58 against 13.8 at kl_coef .1, 1.84 against 3.21 at .5."""
    for kl_coef, chi, kl, policy in ((0.1, 4.58, 13.8, (0.229, 0.450, 0.315, 0.006, 0.0)), (0.5, 1.84, 3.21, None)):
        start = gibbs(REWARDS, REF5, 2 * kl_coef)
        pi = fitted(partial(losses.chi_po, clip=4.0), bradley_terry(REWARDS), REF5, kl_coef, start)
        assert float((pi - REF5).exp().max()) == pytest.approx(chi, abs=5e-3)
        assert float((gibbs(REWARDS, REF5, kl_coef) - REF5).exp().max()) == pytest.approx(kl, rel=4e-3)
        if policy is not None:
            torch.testing.assert_close(pi.exp(), tensor(policy), rtol=0, atol=5e-4)
        ratio = (pi - REF5).exp()
        c = float((REWARDS - kl_coef * (ratio + ratio.log()))[0])
        torch.testing.assert_close(ratio, lambert_w_exp((REWARDS - c) / kl_coef), rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------- SAIL


ARMS = tensor([1, 0.7, 0.4, 0.1, -0.2])
UNIFORM = torch.full((5,), -math.log(5.0)).double()
CELLS = torch.cartesian_prod(torch.arange(5), torch.arange(5))


def expected_gradient(loss: Any, theta: Tensor, kl_coef: float, label: Tensor | None = None) -> Tensor:
    """Exact expectation over pairs of pi (identical ones too) of the loss's gradient at now = last, in the logits."""
    theta = theta.clone().requires_grad_(True)
    log_pi = torch.log_softmax(theta, -1)
    law = log_pi.detach()[CELLS].sum(-1).exp()
    label = bradley_terry(ARMS)[CELLS[:, 0], CELLS[:, 1]] if label is None else label
    value = law @ loss(PairLogProbs(log_pi[CELLS], log_pi.detach()[CELLS], UNIFORM[CELLS]), label, kl_coef)
    return torch.autograd.grad(value, theta)[0]


def bilevel(theta: Tensor, kl_coef: float, own: bool = False) -> Tensor:
    """E over pairs of pi, and labels of the oracle or of pi itself, of -log sigma(kl_coef u)."""
    log_pi = torch.log_softmax(theta, -1)
    h = kl_coef * (log_pi - UNIFORM)
    p = torch.sigmoid(h[:, None] - h[None, :])
    label = p if own else bradley_terry(ARMS)
    return -(log_pi.exp()[:, None] * log_pi.exp()[None, :] * (label * p.log() + (1 - label) * (1 - p).log())).sum()


def finite_differences(f: Any, theta: Tensor, step: float = 1e-4) -> Tensor:
    """Fourth order: error of order step^4 + rounding / step, about 1e-12."""
    unit = torch.eye(len(theta), dtype=torch.float64)
    return torch.stack(
        [
            (8 * (f(theta + step * e) - f(theta - step * e)) - f(theta + 2 * step * e) + f(theta - 2 * step * e))
            / (12 * step)
            for e in unit
        ]
    )


@pytest.mark.parametrize("kl_coef", [0.1, 0.5])
def test_sails_gradient_is_that_of_its_bilevel_objective(kl_coef):
    theta = tensor([0.3, -0.2, 0.9, 0.0, -1.1])
    full = finite_differences(lambda t: bilevel(t, kl_coef), theta)
    own = finite_differences(lambda t: bilevel(t, kl_coef, own=True), theta)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-8)
    close(expected_gradient(partial(losses.sail_pr, coef=1.0), theta, kl_coef), full)
    close(expected_gradient(partial(losses.sail_pp, coef=1.0), theta, kl_coef), own)
    on_policy = expected_gradient(losses.dpo, theta, kl_coef)
    close(expected_gradient(partial(losses.sail_pr, coef=0.0), theta, kl_coef), on_policy)
    close(expected_gradient(partial(losses.sail_pp, coef=0.0), theta, kl_coef), torch.zeros(5).double())
    part = on_policy + 0.3 * (full - on_policy)
    close(expected_gradient(partial(losses.sail_pr, coef=0.3), theta, kl_coef), part)
    back = on_policy - 0.3 * (full - on_policy)
    close(expected_gradient(partial(losses.sail_reversed_sign, coef=0.3), theta, kl_coef), back)
    assert (full - on_policy).abs().max() > 2e-3
    log_pi = torch.log_softmax(theta, -1)
    penalty = finite_differences(lambda t: (torch.softmax(t, -1) * (torch.log_softmax(t, -1) - UNIFORM)).sum(), theta)
    regularised = expected_gradient(partial(losses.sail_rev_kl, coef=1.0, kl_weight=0.4), theta, kl_coef)
    close(regularised, full + 0.4 * penalty)
    assert log_pi.exp().sum() == pytest.approx(1.0)


TARGET = gibbs(ARMS, UNIFORM, 0.5)
TABLE = {
    "T2": (losses.dpo, (0.475, 0.261, 0.143, 0.078, 0.043), 0.0, 0.0),
    "T2 + .3 T1": (partial(losses.sail_pr, coef=0.3), (0.464, 0.243, 0.140, 0.090, 0.063), 0.0057, 0.0029),
    "T2 + T1": (partial(losses.sail_pr, coef=1.0), (0.464, 0.200, 0.128, 0.108, 0.100), 0.0409, 0.0204),
    "T2 - .3 T1": (
        partial(losses.sail_reversed_sign, coef=0.3),
        (0.490, 0.278, 0.142, 0.065, 0.026),
        0.0060,
        0.0030,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_where_sails_terms_lead(name):
    """Five arms, kl_coef .5, uniform reference: the stationary policy, its KL to the optimum and its value gap."""
    loss, published, divergence, gap = TABLE[name]

    def field(theta):
        return expected_gradient(loss, tensor([*theta, 0.0]), 0.5).numpy()[:4]

    start = (TARGET - TARGET[4]).numpy()[:4] * 0.8
    found = optimize.root(field, start, tol=1e-12)
    assert np.abs(field(found.x)).max() < 1e-10
    log_pi = torch.log_softmax(tensor([*found.x, 0.0]), -1)
    torch.testing.assert_close(log_pi.exp(), tensor(published), rtol=0, atol=6e-4)
    away = float((log_pi.exp() * (log_pi - TARGET)).sum())
    assert away == pytest.approx(divergence, abs=6e-5)
    assert 0.5 * away == pytest.approx(gap, abs=6e-5)  # J(pi*) - J(pi) = kl_coef KL(pi || pi*)
    if name == "T2":
        torch.testing.assert_close(log_pi, TARGET, rtol=0, atol=1e-8)
        sharp = gibbs(ARMS, UNIFORM, 0.1)
        assert expected_gradient(losses.dpo, sharp, 0.1).abs().max() < 1e-14


def own_label_point(mixture: float, coef: float, p: float) -> float:
    """Two arms: the margin D = kl_coef u at which SAIL-DP's gradient vanishes at now = last."""

    def slope(margin):
        now = tensor([[margin / KL, 0.0]]).requires_grad_(True)
        pair = PairLogProbs(now, now.detach(), torch.zeros(1, 2).double())
        value = losses.sail_dp(pair, tensor([p]), KL, coef=coef, mixture=mixture).sum()
        return float(torch.autograd.grad(value, now)[0][0, 0])

    found: Any = optimize.brentq(slope, 0.1, 6.0, xtol=1e-12)
    return float(found)


def test_fixed_points_of_sail_dp_on_two_arms():
    assert own_label_point(0.4, 0.0, 0.8) == pytest.approx(logit(0.8), abs=1e-9)
    assert own_label_point(0.4, 0.0, 0.8) == pytest.approx(1.386, abs=5e-4)
    for coef, printed in ((0.2, 1.584), (1.0, 2.441)):
        found = own_label_point(0.4, coef, 0.8)
        s = 1 / (1 + math.exp(-found))
        assert 0.6 * (0.8 - s) + 0.4 * coef * found * s * (1 - s) == pytest.approx(0.0, abs=1e-9)
        assert found == pytest.approx(printed, abs=5e-4)


def test_the_released_codes_own_label_loss_has_our_gradient_and_no_lower_bound():
    """-l - coef l^2 / 2 for a sampled label: mean gradient as `sail_dp`'s, and it turns at l = -1 / coef."""
    now = tensor([[0.9, -0.4]]).requires_grad_(True)
    coef = 0.2
    m = KL * (now[0, 0] - now[0, 1])
    total = torch.zeros(())
    for sign in (1.0, -1.0):
        log_p = torch.nn.functional.logsigmoid(sign * m)
        total = total + log_p.detach().exp() * (-log_p - coef * log_p**2 / 2)
    (released,) = torch.autograd.grad(total, now)
    pair = PairLogProbs(now, now.detach(), torch.zeros(1, 2).double())
    (ours,) = torch.autograd.grad(losses.sail_dp(pair, tensor([0.5]), KL, coef=coef, mixture=1.0).sum(), now)
    torch.testing.assert_close(ours, released)
    for rho, turn in ((0.2, -4.99), (0.3, -3.30), (1.0, -0.54)):
        assert -math.log(math.exp(1 / rho) - 1) == pytest.approx(turn, abs=5e-3)
        margin = tensor([turn - 0.1, turn + 0.1]).requires_grad_(True)
        log_p = torch.nn.functional.logsigmoid(margin)
        (slope,) = torch.autograd.grad((-log_p - rho * log_p**2 / 2).sum(), margin)
        assert slope[0] > 0 > slope[1]


def test_the_released_hook_and_its_deviations_one_by_one():
    """Seven duels with hard labels: gradients of the code's batch mean, with its hook, times the batch's size."""
    rng, size, coef = np.random.default_rng(0), 7, 0.3
    now = tensor(-rng.exponential(size=(size, 2))).requires_grad_(True)
    ref, label = tensor(-rng.exponential(size=(size, 2))), tensor([1, 0, 1, 1, 0, 0, 1])
    still = now.detach()
    pair = PairLogProbs(now, still, ref)

    def gradient(name, **own):
        return torch.autograd.grad(getattr(losses, name)(pair, label, KL, **own).sum(), now)[0]

    plain = gradient("dpo")
    l_now = -losses.dpo(PairLogProbs(still, still, ref), label, KL)[:, None]  # log sigma of the winner's margin
    hooked = plain / size - coef * l_now / still
    torch.testing.assert_close(gradient("sail_released", coef=coef), size * hooked)
    torch.testing.assert_close(gradient("sail_pr", coef=coef), plain - coef * l_now)
    torch.testing.assert_close(gradient("sail_reversed_sign", coef=coef), plain + coef * l_now)
    torch.testing.assert_close(gradient("sail_scaled", coef=coef), plain + coef * l_now / still)
    torch.testing.assert_close(gradient("sail_unscaled_batch", coef=coef), plain - coef * size * l_now)
    assert (
        gradient("sail_pr", coef=coef) > plain
    ).all()  # descent lowers both log-probs; the released sign raises them
    assert (size * hooked < plain).all()


# ---------------------------------------------------------------------------------------- the other derived identities


def test_self_preference_at_its_own_sharpness_is_a_fixed_point():
    """u = sharpness u_last, here from a policy that has moved."""
    moved = tensor([[0.7, -0.2]])

    def mean(u, sharpness):
        pair = PairLogProbs(tensor([[u, 0.0]]), moved, 0 * moved)
        return float(losses.osp(pair, tensor([0.3]), KL, sharpness=sharpness))

    for sharpness in (1.0, 1.7):
        best = minimiser(partial(mean, sharpness=sharpness), 9)
        assert best == pytest.approx(0.9 * sharpness, abs=1e-5)


def test_aihf_meets_gibbs_where_both_sources_agree():
    """Demonstrations from Gibbs(r) and Bradley-Terry labels of r: stationary exactly there, at every weight."""
    target = gibbs(ARMS, UNIFORM, KL)
    cells = torch.cartesian_prod(*[torch.arange(5)] * 3)
    theta = target.clone().requires_grad_(True)
    now = torch.log_softmax(theta, -1)[cells]
    pair = PairLogProbs(now, now.detach(), UNIFORM[cells])
    label = bradley_terry(ARMS)[cells[:, 0], cells[:, 1]]
    law = target.exp()[cells[:, 2]] / 25
    for weight in (0.1, 3.0):
        value = law @ losses.aihf(pair, label, KL, demonstration_weight=weight)
        (g,) = torch.autograd.grad(value, theta, retain_graph=True)
        assert g.abs().max() < 1e-15

"""Every loss: derivatives, symmetries, what a fit must know of it, arguments, and the identities between losses."""

from __future__ import annotations

import inspect
import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simbandit import losses
from simbandit.losses.arguments import check
from simbandit.objective import PairLogProbs

KL = 0.6
OWN: dict[str, dict[str, float]] = {
    "cdpo": {"label_smoothing": 0.1},
    "rdpo": {"label_smoothing": 0.2},
    "exo": {"label_smoothing": 0.1},
    "discopop": {"temperature": 0.05},
    "offset_dpo": {"margin": 0.4},
    "simpo": {"margin": 0.4},
    "orpo": {"odds_weight": 0.7},
    "rpo": {"sft_weight": 0.2},
    "osp": {"sharpness": 1.5},
    "f_dpo_alpha": {"alpha": 0.3},
    "chi_po": {"clip": 4.0},
    "kto": {"desirable_weight": 1.0, "undesirable_weight": 1.3, "reference_point": 0.2},
    "inpo": {"step_size": 0.7},
    "onpo": {"step_size": 0.7},
    "sppo": {"step_size": 0.7},
    "dno": {"step_size": 0.7},
    "rspo_reverse_kl": {"step_size": 0.7},
    "rspo_forward_kl": {"step_size": 0.7},
    "rspo_chi_squared": {"step_size": 0.7},
    "optimism": {"alpha": 0.3},
    "pessimism": {"alpha": 0.3},
    "value_optimism": {"alpha": 0.3},
    "value_pessimism": {"alpha": 0.3},
    "self_play_penalty": {"step_size": 0.7},
    "critic": {"step_size": 0.7, "preference_weight": 1.2},
    "preference_optimism": {"alpha": 0.3},
    "count_optimism": {"alpha": 0.3},
    "kl_penalty": {"weight": 0.5},
    "xpo": {"alpha": 0.3},
    "vpo_online": {"alpha": 0.3},
    "vpo_offline": {"alpha": 0.3},
    "selm": {"alpha": 0.3},
    "se_popo": {"alpha": 0.3},
    "copo": {"alpha": 0.3, "count": 4.0},
    "depo": {"alpha": 0.3, "width": 0.8},
    "hypo": {"kl_weight": 0.2},
    "spac": {"step_size": 0.7, "preference_weight": 1.2},
    "aihf": {"demonstration_weight": 0.4},
    "slic": {"margin": 1.0, "sft_weight": 0.3},
    "tdpo2": {"alpha": 0.5},
    "sail_pr": {"coef": 0.7},
    "sail_pp": {"coef": 0.7},
    "sail_dp": {"coef": 0.7, "mixture": 0.4},
    "sail_rev_kl": {"coef": 0.7, "kl_weight": 0.3},
    "sail_reversed_sign": {"coef": 0.7},
    "sail_scaled": {"coef": 0.7},
    "sail_unscaled_batch": {"coef": 0.1},
    "sail_released": {"coef": 0.1},
}
NAMES = sorted(name for name, f in vars(losses).items() if inspect.isfunction(f))
SORTED = ("aot", "aot_unpaired")
DIFFERENCES = ("onpo", "sppo", "dno", "spac", "critic", "self_play_penalty", "optimism", "pessimism")
"""No reference, or one whose log-probability is a constant: its gradient does not know it."""
LINEAR = ("hinge", "slic", "optimism", "pessimism", "value_optimism", "value_pessimism", "self_play_penalty")


def loss(name: str) -> Any:
    return partial(getattr(losses, name), **OWN.get(name, {}))


def columns(name: str) -> int:
    return 1 if name in losses.BONUSES else 3 if name in losses.CALIBRATED else 2


def tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=float))


def random_pair(name: str, seed: int = 0, duels: int = 5) -> PairLogProbs:
    rng = np.random.default_rng(seed)
    return PairLogProbs(*(tensor(-rng.exponential(1.5, size=(duels, columns(name)))) for _ in range(3)))


LABEL = tensor([0.0, 1.0, 0.3, 0.5, 0.9])


def gradient(name: str, pair: PairLogProbs, label: Tensor, kl_coef: float = KL) -> Tensor:
    now = pair.now.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(loss(name)(pair._replace(now=now), label, kl_coef).sum(), now)
    return g


# ----------------------------------------------------------------------------------------------- every loss, one by one


def test_the_list_of_losses_is_complete():
    for name in NAMES:
        own = [p for p in inspect.signature(getattr(losses, name)).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert sorted(p.name for p in own if p.default is p.empty) == sorted(OWN.get(name, {})), name
    assert set(OWN) <= set(NAMES)
    for traits in ("BATCHED", "BONUSES", "CALIBRATED", "DIVERGING", "LABEL_FREE", "MOVING", "NON_CONVEX", "POINTWISE"):
        assert getattr(losses, traits) <= set(NAMES)
    assert set(losses.__all__) == set(NAMES) | {n for n in vars(losses) if n.isupper()}


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_exact(name):
    pair = random_pair(name)

    def at(now):
        return loss(name)(pair._replace(now=now), LABEL, KL)

    now = pair.now.requires_grad_(True)
    assert torch.autograd.gradcheck(at, now, atol=1e-7)
    if at(now).requires_grad and name not in LINEAR:
        assert torch.autograd.gradgradcheck(at, now, atol=1e-6)
    assert at(now).shape == LABEL.shape


@pytest.mark.parametrize("name", sorted({*NAMES} - {*SORTED}))
def test_losses_are_affine_in_the_label_and_know_no_order_of_responses(name):
    pair, f = random_pair(name), loss(name)
    by_label = (1 - LABEL) * f(pair, 0 * LABEL, KL) + LABEL * f(pair, 0 * LABEL + 1, KL)
    torch.testing.assert_close(f(pair, LABEL, KL), by_label)
    if columns(name) > 1:
        order = [1, 0, 2][: columns(name)]
        torch.testing.assert_close(f(pair, LABEL, KL), f(PairLogProbs(*(x[:, order] for x in pair)), 1 - LABEL, KL))


@pytest.mark.parametrize("name", NAMES)
def test_losses_broadcast(name):
    """Several starts (4 of them) of the same duels, three replicates of five."""
    rng = np.random.default_rng(1)
    now = tensor(-rng.exponential(size=(4, 3, 5, columns(name))))
    last, ref = (tensor(-rng.exponential(size=(3, 5, columns(name)))) for _ in range(2))
    label = tensor(rng.random((3, 5)))
    both = loss(name)(PairLogProbs(now, last, ref), label, KL)
    assert both.shape == (4, 3, 5)
    one = loss(name)(PairLogProbs(now[2, 1], last[1], ref[1]), label[1], KL)
    torch.testing.assert_close(both[2, 1], one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_log_probabilities_give_no_nan(name, dtype):
    """Ratios of e^600 and e^-600, certain responses (log pi = 0) and ties, under hard and soft labels."""
    far = [-600.0, -1e-9, 0.0, -3.0]
    grid = torch.cartesian_prod(*[torch.tensor(far, dtype=dtype)] * 3)  # now, last, ref of a response
    k = columns(name)
    rows = torch.randint(0, len(grid), (200, k), generator=torch.Generator().manual_seed(0))
    pair = PairLogProbs(*grid[rows].unbind(-1))
    for hard in (0.0, 1.0, 0.3):
        label = torch.full((200,), hard, dtype=dtype)
        assert not loss(name)(pair, label, 1.0).isnan().any()
        assert not gradient(name, pair, label, 1.0).isnan().any()


# --------------------------------------------------------------------------------------------- what a fit must know


@pytest.mark.parametrize("name", NAMES)
def test_traits_are_measured(name):
    pair = random_pair(name)
    g = gradient(name, pair, LABEL)

    def moves(**changed) -> bool:
        return float((gradient(name, pair._replace(**changed), LABEL) - g).abs().max()) > 1e-9

    other = random_pair(name, seed=1).now
    elsewhere = loss(name)(pair._replace(last=other), LABEL, KL)
    assert torch.allclose(elsewhere, loss(name)(pair, LABEL, KL)) == (name not in losses.MOVING)
    reference_free = not moves(ref=other) and name not in (*DIFFERENCES, "value_optimism", "value_pessimism")
    assert reference_free == (name in losses.REFERENCE_FREE)
    blind = torch.allclose(gradient(name, pair, 1 - LABEL), g)
    assert blind == (name in losses.LABEL_FREE)
    alone = torch.cat([gradient(name, PairLogProbs(*(x[i : i + 1] for x in pair)), LABEL[i : i + 1]) for i in range(5)])
    assert torch.allclose(alone, g) == (name not in losses.BATCHED)


@pytest.mark.parametrize("name", NAMES)
def test_a_duel_of_a_response_with_itself_counts_in_pointwise_losses_alone(name):
    pair = random_pair(name, duels=1)
    same = PairLogProbs(*(x[:, [0, 0, 2][: columns(name)]] for x in pair))
    g = gradient(name, same._replace(last=same.now - 0.3), tensor([0.8]))[0]
    counts = max(abs(float(g[:2].sum())), abs(float(g[2:].sum()))) > 1e-6
    assert counts == (name in losses.POINTWISE)


def least_curvature(name: str) -> float:
    """The least eigenvalue found of the Hessian in the logits of a table of three actions, over random data."""
    least, k, n = math.inf, columns(name), 3
    cells = torch.cartesian_prod(*[torch.arange(n)] * k).view(-1, k)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        last, ref, theta = (tensor(rng.normal(size=n) * 1.5) for _ in range(3))
        weight = tensor(rng.exponential(size=len(cells)))
        label = tensor(np.clip(rng.normal(0.5, 0.7, size=len(cells)), 0, 1))
        last, ref = torch.log_softmax(last, -1)[cells], torch.log_softmax(ref, -1)[cells]

        def value(theta, last=last, ref=ref, weight=weight, label=label):
            now = torch.log_softmax(theta, -1)[cells]
            return (weight * loss(name)(PairLogProbs(now, last, ref), label, KL)).sum()

        least = min(least, float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(value, theta))[0]))
    return least


@pytest.mark.parametrize("name", sorted({*NAMES} - losses.MOVING - {*SORTED}))
def test_convexity_in_a_tables_logits_is_measured(name):
    assert (least_curvature(name) < -1e-3) == (name in losses.NON_CONVEX)


# ------------------------------------------------------------------------------------------------------------ arguments


def test_check_returns_what_the_loss_takes():
    pair = random_pair("xpo")
    assert check("xpo", LABEL, pair.now, ref=pair.ref)[1].abs().max() == 0
    taken = check("simpo", LABEL, pair.now[:, :2])
    assert all(x.shape == (5, 2) for x in taken)
    torch.testing.assert_close(
        loss("simpo")(taken, LABEL, KL), loss("simpo")(random_pair("simpo")._replace(now=pair.now[:, :2]), LABEL, KL)
    )


TWO = tensor([[-1.0, -2.0]])


@pytest.mark.parametrize(
    ("name", "label", "given", "message"),
    [
        ("dopo", [0.5], {"now": TWO, "ref": TWO}, "name: 'dopo' is not a loss"),
        ("check", [0.5], {"now": TWO, "ref": TWO}, "name: 'check' is not a loss"),
        ("dpo", [1.2], {"now": TWO, "ref": TWO}, r"label: must be probabilities in \[0, 1\]"),
        ("dpo", [math.nan], {"now": TWO, "ref": TWO}, "label: must be probabilities"),
        ("dpo", [1.0], {"now": -TWO, "ref": TWO}, "now: log-probabilities must be finite and <= 0"),
        ("dpo", [1.0], {"now": TWO * math.nan, "ref": TWO}, "now: log-probabilities must be finite"),
        ("dpo", [1.0], {"now": TWO, "ref": TWO * math.inf}, "ref: log-probabilities must be finite"),
        ("dpo", [1.0], {"now": TWO, "ref": TWO[:, :1]}, r"ref: must have now's shape \(1, 2\), got \(1, 1\)"),
        ("dpo", [1.0], {"now": TWO}, "ref: dpo needs the reference's log-probabilities"),
        ("simpo", [1.0], {"now": TWO, "ref": TWO}, "ref: simpo has no reference and would ignore it; leave it out"),
        ("inpo", [1.0], {"now": TWO, "ref": TWO}, "last: inpo needs the last policy's log-probabilities"),
        ("xpo", [1.0], {"now": TWO, "ref": TWO}, "now: xpo takes both responses and the calibration draw"),
        ("optimism", [1.0], {"now": TWO, "ref": TWO}, "now: optimism takes one response"),
    ],
)
def test_check_names_what_is_wrong(name, label, given, message):
    with pytest.raises(ValueError, match=message):
        check(name, tensor(label), **given)


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        ("cdpo", {"label_smoothing": 0.5}, r"label_smoothing: must lie in \[0, 1/2\), got 0.5"),
        ("rdpo", {"label_smoothing": -0.1}, r"label_smoothing: must lie in \[0, 1/2\)"),
        ("exo", {"label_smoothing": 0.0}, r"label_smoothing: must lie in \(0, 1/2\)"),
        ("discopop", {"temperature": 1.5}, r"temperature: must lie in \(0, 1\]"),
        ("simpo", {"margin": -0.1}, "margin: must be >= 0"),
        ("offset_dpo", {"margin": math.nan}, "margin: must be >= 0"),
        ("orpo", {"odds_weight": -1.0}, "odds_weight: must be >= 0"),
        ("rpo", {"sft_weight": -1.0}, "sft_weight: must be >= 0"),
        ("osp", {"sharpness": 0.0}, "sharpness: must be > 0"),
        ("f_dpo_alpha", {"alpha": 1.0}, r"alpha: must lie in \(0, 1\)"),
        ("chi_po", {"clip": 0.0}, "clip: must be > 0"),
        ("kto", {**OWN["kto"], "desirable_weight": 0.0}, "desirable_weight: must be > 0"),
        ("kto", {**OWN["kto"], "reference_point": -1.0}, "reference_point: must be >= 0"),
        *((name, {"step_size": 0.0}, "step_size: must be > 0") for name in ("inpo", "onpo", "sppo", "dno")),
        *((f"rspo_{name}", {"step_size": -1.0}, "step_size: must be > 0") for name in ("reverse_kl", "chi_squared")),
        *((n, {"alpha": -0.1}, "alpha: must be > 0") for n in ("xpo", "vpo_online", "vpo_offline", "selm", "se_popo")),
        *(
            (name, {"alpha": 0.0}, "alpha: must be > 0")
            for name in ("optimism", "pessimism", "count_optimism", "tdpo2")
        ),
        ("copo", {"alpha": 0.1, "count": 0.0}, "count: must be > 0"),
        ("depo", {"alpha": 0.1, "width": -1.0}, "width: must be >= 0"),
        ("hypo", {"kl_weight": -1.0}, "^kl_weight: must be >= 0"),
        ("spac", {"step_size": 0.0, "preference_weight": 1.0}, "step_size: must be > 0"),
        ("aihf", {"demonstration_weight": -1.0}, "demonstration_weight: must be >= 0"),
        ("slic", {"margin": 0.0, "sft_weight": 1.0}, "margin: must be > 0"),
        ("sail_pr", {"coef": -0.3}, "coef: must be >= 0"),
        ("sail_dp", {"coef": 0.3, "mixture": 1.3}, r"mixture: must lie in \[0, 1\]"),
        ("sail_rev_kl", {"coef": 0.3, "kl_weight": -1.0}, "kl_weight: must be >= 0"),
    ],
)
def test_own_parameters_are_checked(name, own, message):
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(random_pair(name), LABEL, KL, **own)


# ----------------------------------------------------------------------------------------------------------- identities


def same_gradients(first: Any, second: Any, pair: PairLogProbs, label: Tensor = LABEL) -> None:
    now = pair.now.clone().requires_grad_(True)
    pair = pair._replace(now=now)
    (a,) = torch.autograd.grad(first(pair, label, KL).sum(), now)
    (b,) = torch.autograd.grad(second(pair, label, KL).sum(), now)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_xpo_vpo_and_selm_are_one_where_their_draws_are():
    """Per duel alpha_xpo = kl_coef alpha_selm; VPO's alpha is that of one expectation, here over 5 draws."""
    pair, alpha = random_pair("xpo"), 0.3
    xpo = losses.xpo(pair, LABEL, KL, alpha=alpha)
    torch.testing.assert_close(losses.selm(pair, LABEL, KL, alpha=alpha / KL), xpo)
    torch.testing.assert_close(losses.vpo_online(pair, LABEL, KL, alpha=alpha / KL), xpo)
    alpha_vpo = 5 * alpha / KL
    drift = (pair.now - pair.ref)[:, 2]
    paper = losses.dpo(pair, LABEL, KL).sum() + alpha_vpo * KL * drift.mean()
    torch.testing.assert_close(xpo.sum(), paper)
    assert (losses.vpo_offline(pair, LABEL, KL, alpha=0.3) - losses.dpo(pair, LABEL, KL)) @ drift < 0


def test_offline_vpo_is_rpo_with_the_winner_as_draw():
    pair = random_pair("rpo")
    for winner, label in ((0, 1.0), (1, 0.0)):
        drawn = PairLogProbs(*(torch.cat([x, x[:, winner : winner + 1]], dim=1) for x in pair))
        vpo = losses.vpo_offline(drawn, 0 * LABEL + label, KL, alpha=0.2 / KL)
        constant = 0.2 * pair.ref[:, winner]
        torch.testing.assert_close(losses.rpo(pair, 0 * LABEL + label, KL, sft_weight=0.2), vpo - constant)


def test_compositions_are_sums_of_their_terms():
    pair = random_pair("xpo")
    duel, draw = (PairLogProbs(*(x[:, part] for x in pair)) for part in (slice(2), slice(2, 3)))
    terms = {
        "xpo": ("optimism", {"alpha": 0.3}),
        "vpo_online": ("value_optimism", {"alpha": 0.3}),
        "vpo_offline": ("value_pessimism", {"alpha": 0.3}),
        "se_popo": ("preference_optimism", {"alpha": 0.3}),
        "hypo": ("kl_penalty", {"weight": 0.2}),
    }
    for name, (bonus, own) in terms.items():
        parts = losses.dpo(duel, LABEL, KL) + getattr(losses, bonus)(draw, LABEL, KL, **own)
        torch.testing.assert_close(loss(name)(pair, LABEL, KL), parts)
    data = loss("critic")(duel, LABEL, KL)
    torch.testing.assert_close(loss("spac")(pair, LABEL, KL), data + loss("self_play_penalty")(draw, LABEL, KL))
    half = losses.dpo(duel, LABEL, KL) + losses.count_optimism(draw, LABEL, KL, alpha=0.3) / 2
    torch.testing.assert_close(losses.copo(pair, LABEL, KL, alpha=0.3, count=4.0), half)


def test_robust_dpo_is_unbiased_and_its_variance_inflates():
    pair, eps = random_pair("dpo"), 0.2
    clean = losses.dpo(pair, LABEL, KL)
    robust = partial(losses.rdpo, label_smoothing=eps)
    flipped = (1 - eps) * robust(pair, LABEL, KL) + eps * robust(pair, 1 - LABEL, KL)
    torch.testing.assert_close(flipped, clean)
    spread = robust(pair, 0 * LABEL + 1, KL) - robust(pair, 0 * LABEL, KL)
    torch.testing.assert_close(
        spread * (1 - 2 * eps), losses.dpo(pair, 0 * LABEL + 1, KL) - losses.dpo(pair, 0 * LABEL, KL)
    )


def test_dpo_labelled_by_itself_learns_nothing():
    pair = random_pair("dpo")
    u = (pair.now - pair.ref)[:, 0] - (pair.now - pair.ref)[:, 1]
    assert gradient("dpo", pair, torch.sigmoid(KL * u)).abs().max() < 1e-15
    assert gradient("dpo", pair, torch.sigmoid(2 * KL * u)).abs().max() > 0.01
    still = pair._replace(last=pair.now)
    now = pair.now.clone().requires_grad_(True)
    value = losses.osp(still._replace(now=now), LABEL, KL, sharpness=1.0).sum()
    (g,) = torch.autograd.grad(value, now)
    assert g.abs().max() < 1e-15


def test_families_meet():
    pair = random_pair("dpo")
    m = KL * ((pair.now - pair.ref)[:, 0] - (pair.now - pair.ref)[:, 1])
    dpo = losses.dpo(pair, LABEL, KL)
    assert torch.equal(losses.offset_dpo(pair, LABEL, KL, margin=0.0), dpo)
    torch.testing.assert_close(losses.chi_po(pair._replace(now=pair.now - 700), LABEL, KL, clip=math.inf), dpo)
    torch.testing.assert_close(losses.f_dpo_alpha(pair, LABEL, KL, alpha=1e-7), dpo, rtol=1e-5, atol=1e-5)
    forward = losses.f_dpo_forward_kl(pair, LABEL, KL)
    torch.testing.assert_close(losses.f_dpo_alpha(pair, LABEL, KL, alpha=1 - 1e-12), forward, rtol=1e-9, atol=1e-9)
    squared = LABEL * (1 - m) ** 2 + (1 - LABEL) * (1 + m) ** 2
    torch.testing.assert_close(losses.ipo(pair, LABEL, KL / 2) * KL**2, squared)
    plain = partial(losses.kto, desirable_weight=1.0, undesirable_weight=1.0, reference_point=0.0)
    torch.testing.assert_close(plain(pair, LABEL, KL), losses.apo_zero(pair, LABEL, KL))
    reference = pair._replace(ref=torch.zeros_like(pair.ref))
    simpo = losses.simpo(pair, LABEL, KL, margin=0.4)
    torch.testing.assert_close(losses.offset_dpo(reference, LABEL, KL, margin=0.4), simpo)


@pytest.mark.parametrize("rounding", [0.0, 0.05])
def test_chi_po_clips_margins_of_any_size(rounding):
    """At z = 1, 60 and 600 the margin kl_coef (z + e^z) is beyond the clip; at z = .3 it is not."""
    z = tensor([0.3, 1.0, 60.0, 600.0, -600.0])
    ref = torch.stack([-z.abs() - 1, -z.abs() - 1], dim=-1)
    now = torch.stack([ref[:, 0] + z, ref[:, 1]], dim=-1).requires_grad_(True)
    value = losses.chi_po(PairLogProbs(now, ref, ref), 0 * z + 1, KL, clip=1.5, rounding=rounding)
    (g,) = torch.autograd.grad(value.sum(), now)
    ends = tensor([KL * (0.3 + math.exp(0.3) - 1), 1.5, 1.5, 1.5, -1.5])
    torch.testing.assert_close(value.detach(), torch.nn.functional.softplus(-ends))
    assert ((g[:, 0] != 0) == tensor([1, 0, 0, 0, 0]).bool()).all()


def test_rounded_corners_are_parabolas():
    pair = random_pair("dpo", duels=400)
    label = (torch.arange(400) % 2).double()
    for name, own in (("hinge", {}), ("chi_po", {"clip": 1.0})):
        f = partial(getattr(losses, name), **own)
        apart = (f(pair, label, KL) - f(pair, label, KL, rounding=0.2)).abs()
        assert 0 < float(apart.max()) <= 0.05 + 1e-12  # a quarter of the rounding, in the margin
        with pytest.raises(ValueError, match="rounding: must be >= 0"):
            f(pair, label, KL, rounding=-0.1)


def test_copo_has_the_gradient_of_the_released_code():
    """- alpha sg[min(pi/pi_ref, 5) bonus] log pi, on both sides of the cap."""
    now, ref = tensor([[-1.0], [-0.5], [-3.0]]), tensor([[-1.5], [-4.0], [-0.2]])
    pair = PairLogProbs(now.requires_grad_(True), ref, ref)
    (g,) = torch.autograd.grad(losses.count_optimism(pair, torch.zeros(3), KL, alpha=0.3).sum(), now)
    torch.testing.assert_close(g, -0.3 * (now - ref).exp().clamp(max=5.0).detach())
    assert float((now - ref).detach().exp().max()) > 5


def test_wpo_weighs_duels_by_the_last_policy():
    pair = random_pair("wpo")
    torch.testing.assert_close(loss("wpo")(pair, LABEL, KL), pair.last.exp().prod(-1) * losses.dpo(pair, LABEL, KL))


def test_tdpo2_pulls_towards_the_reference_as_its_stop_gradient_does():
    """At now = last: DPO's value; gradient DPO's plus alpha kl_coef (chance of the other label) grad KL(ref || pi)."""
    pair = random_pair("tdpo2")
    pair = pair._replace(last=pair.now)
    torch.testing.assert_close(loss("tdpo2")(pair, LABEL, KL), losses.dpo(pair, LABEL, KL))
    g = gradient("tdpo2", pair, LABEL)
    torch.testing.assert_close(g[:, :2], gradient("dpo", PairLogProbs(*(x[:, :2] for x in pair)), LABEL))
    u = (pair.now - pair.ref)[:, 0] - (pair.now - pair.ref)[:, 1]
    surprise = LABEL * torch.sigmoid(-KL * u) + (1 - LABEL) * torch.sigmoid(KL * u)
    torch.testing.assert_close(g[:, 2], -0.5 * KL * surprise)  # grad of the draw's -log pi


def sorted_dpo(a: Tensor, b: Tensor) -> Tensor:
    return -torch.nn.functional.logsigmoid(KL * (a.sort().values - b.sort().values)).sum()


def test_aot_sorts_within_its_batch_and_splits_soft_labels():
    pair, hard = random_pair("aot"), tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    sign = 2 * hard - 1
    a, ref = sign * (pair.now[:, 0] - pair.now[:, 1]), sign * (pair.ref[:, 0] - pair.ref[:, 1])
    torch.testing.assert_close(losses.aot(pair, hard, KL).sum(), sorted_dpo(a, ref))
    h = pair.now - pair.ref
    won, lost = torch.where(hard == 1, h[:, 0], h[:, 1]), torch.where(hard == 1, h[:, 1], h[:, 0])
    torch.testing.assert_close(losses.aot_unpaired(pair, hard, KL).sum(), sorted_dpo(won, lost))
    halves = tensor([1.0, 0.5, 0.0, 0.5, 1.0])  # every duel twice, the split ones once each way
    twice = PairLogProbs(*(torch.cat([x, x]) for x in pair))
    both = torch.cat([tensor([1.0, 1.0, 0.0, 1.0, 1.0]), tensor([1.0, 0.0, 0.0, 0.0, 1.0])])
    for f in (losses.aot, losses.aot_unpaired):
        torch.testing.assert_close(f(pair, halves, KL).sum(), f(twice, both, KL).sum() / 2)


def test_aihf_adds_the_gradients_of_demonstrations_and_preferences():
    pair = random_pair("aihf")
    g = gradient("aihf", pair, LABEL)
    torch.testing.assert_close(g[:, 2], torch.full((5,), -0.4).double())
    torch.testing.assert_close(g[:, :2], gradient("dpo", PairLogProbs(*(x[:, :2] for x in pair)), LABEL))


def test_every_loss_tells_its_source_and_its_population_minimiser():
    """Or whose it shares."""
    functions = {name: f for name in dir(losses) if inspect.isfunction(f := getattr(losses, name))}
    told = {
        name: inspect.getdoc(f) or "" for name, f in functions.items() if "log_probs" in inspect.signature(f).parameters
    }
    assert len(told) > 60
    assert not [name for name, text in told.items() if "Source" not in text or not re.search("(?i)minimise", text)]

"""GSHF's enhancers on a sampled LM: each draws its exact law, computed on the same model with all responses listed."""

import dataclasses
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_bridge import EnumerableLM, LMPolicy, Training, rows
from llm_bridge.catalogue import Catalogue
from llm_bridge.enhancers import GSHF_DPO, Among, BestOfDraws, Heated, Rejection
from simbandit.algorithms.players import Best, Cast, Held, Mixed, Tilt, policy_of
from simbandit.draws import Draws
from simbandit.objective import Descent
from simbandit.policies import Tabular
from simbandit.policies.laws import best_of_n, normalise, rejection_sampling
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts
from tests.llm_bridge import models

N = 4000


@pytest.fixture(scope="module")
def pair() -> tuple[Cast, Tensor, Tensor, LMPolicy]:
    """Current and reference policy, their listed laws (9 responses of two tokens to one prompt)."""
    made = models.gpt2(3, n_embd=8, n_layer=1, n_head=2, window=8)
    model = models.randomised(made, seed=2, scale=0.7).double()
    listed = EnumerableLM(model, [[0, 1]], 2)
    reference = dataclasses.replace(
        LMPolicy.of(model, None, [[0, 1]], max_new_tokens=2), catalogue=Catalogue([[0, 1]], [10**6])
    )
    noise = np.random.default_rng(0)
    weights = [w + 0.2 * torch.from_numpy(noise.normal(size=tuple(w.shape))) for w in reference.weights]
    current = dataclasses.replace(reference, weights=weights, known={})
    flat = torch.cat([w.flatten() for w in weights])[None]
    now = dataclasses.replace(listed, parameters=flat).table.detach()
    ref = listed.table.detach()
    assert (now - ref).abs().max() > 0.5
    return Cast(current, reference, reference, {4: reference}), now[0, 0], ref[0, 0], reference


def counted(policy: Any, pair: Any) -> Tensor:
    """Shares of the listed responses in N draws, and their number by tokens."""
    known = pair[3].world().instance(1, Draws(0, 1)).evaluation.ref_log_probs
    contexts = Contexts(index=torch.zeros(1, N, dtype=torch.int64), ref_log_probs=known.expand(1, N, -1))
    ids = policy.sample(contexts, torch.from_numpy(np.random.default_rng(5).random((1, N))))[0]
    tokens = [pair[3].catalogue.tokens(0, int(i)) for i in ids]
    numbers = np.array([3 * a + b for a, b in tokens])
    return torch.from_numpy(np.bincount(numbers, minlength=9) / N)


def close(seen: Tensor, law: Tensor) -> None:
    p = law.exp()
    assert ((seen - p).abs() < 4.5 * (p * (1 - p) / N).sqrt() + 1e-9).all(), (seen, p)


@pytest.mark.parametrize(
    ("player", "law"),
    [
        (BestOfDraws(3), lambda now, ref: best_of_n(now, now - ref, 3)),
        (BestOfDraws(3, worst=True), lambda now, ref: best_of_n(now, ref - now, 3)),
        (Among(("current", "reference"), (0.3, 0.7)), lambda now, ref: (0.3 * now.exp() + 0.7 * ref.exp()).log()),
        (Among(("current", Held(4))), lambda now, ref: torch.logaddexp(now, ref) - np.log(2)),
        (Heated(), lambda now, ref: now),
    ],
)  # fmt: skip
def test_a_player_draws_its_exact_law(pair, player, law):
    now, ref = pair[1], pair[2]
    close(counted(player.policy(pair[0]), pair), law(now, ref))
    if player != Heated():  # so that the line above can fail
        assert (law(now, ref).exp() - now.exp()).abs().max() > 0.02


def test_temperature_is_token_by_token(pair):
    """Each token's law to the power 1 / T, normalised: on two tokens not the law of whole responses to that power."""
    now = pair[1].view(3, 3)
    first = now.logsumexp(-1)
    hot = normalise(first / 2)[:, None] + normalise((now - first[:, None]) / 2)
    whole = normalise(now.flatten() / 2)
    assert (hot.flatten().exp() - whole.exp()).abs().max() > 1e-3
    close(counted(Heated(2.0).policy(pair[0]), pair), hot.flatten())


def test_rejection_sampling_draws_the_table_form_of_its_law(pair):
    now, ref, coef, n = pair[1], pair[2], 0.8, 6
    scores = coef * (now - ref)
    exact, rate = rejection_sampling(now, scores, coef, n)
    assert 0.05 < float(rate.exp()) < 0.6  # neither always accepted nor never
    close(counted(Rejection(coef, n, highest=float(scores.max()) + 1e-9).policy(pair[0]), pair), exact)
    assert (exact.exp() - now.exp()).abs().max() > 0.03
    with pytest.raises(ValueError, match=r"highest: .* is below a score"):
        counted(Rejection(coef, n, highest=float(scores.min())).policy(pair[0]), pair)


def test_scores_may_come_from_a_scorer(pair):
    class Text:
        def decode(self, ids: Any, **_: Any) -> str:
            return " ".join(map(str, ids))

    def scorer(pairs: Any) -> list[float]:
        return [sum(map(float, text.split())) for _, text in pairs]

    lm = dataclasses.replace(pair[0].current, tokenizer=Text())
    lm.catalogue.tokenizer = Text()
    digits = torch.tensor([a + b for a in range(3) for b in range(3)]).double()
    cast_ = pair[0]._replace(current=lm)
    close(counted(BestOfDraws(2, scorer=scorer).policy(cast_), pair), best_of_n(pair[1], digits, 2))


def test_who_else_is_in_the_batch_cannot_change_a_draw(pair):
    for player in (Heated(1.5), BestOfDraws(4), Rejection(1.0, 4), Among(("current", "reference"))):
        policy: Any = player.policy(pair[0])
        uniforms = np.random.default_rng(1).random(12).tolist()
        together = policy.generate([0] * 12, uniforms)
        assert together == [policy.generate([0], [u])[0] for u in uniforms]
        assert len(set(together)) > 1


def test_listed_players_are_drawn_on_an_lm(pair):
    row = rows.direct_row("online_dpo", players=(Best(3), Mixed(0.25)))
    assert row.players == (BestOfDraws(3), Among(("current", "reference"), (0.75, 0.25)))
    assert rows.direct_row("gshf_dpo").players == GSHF_DPO["gshf_dpo"]
    cast_: Any = pair[0]._replace(current=Tabular(pair[1][None, None]))
    with pytest.raises(TypeError, match="draws responses of a language model, and this is a Tabular"):
        BestOfDraws(2).policy(cast_)
    with pytest.raises(TypeError, match="cannot list its responses"):
        close(counted(policy_of(Tilt(0.5, 0.0), pair[0]), pair), pair[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BestOfDraws(0), "n: must be at least 1"),
        (lambda: Rejection(0.0), "coef: must be > 0"),
        (lambda: Rejection(1.0, 0), "n: must be at least 1"),
        (lambda: Among(("current",), (0.5,)), "weights: one per player"),
        (lambda: Among(()), "weights: one per player"),
        (lambda: rows.direct_row("online_dpo", players=("current", cast(Any, "oracle"))), "players: must be"),
    ],
)
def test_bad_players_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@dataclasses.dataclass(frozen=True)
class Zeros:
    """Prefers the response with more of token 0."""

    catalogue: Catalogue
    feedback: str = "preference"
    n_select: int = 2

    def bind(self, instance: Any) -> "Zeros":
        return self

    def respond(self, contexts: Contexts, actions: Tensor, draws: Any) -> Tensor:
        counts = [[self.catalogue.tokens(0, a).count(0) for a in both] for both in actions[0].tolist()]
        counted_ = torch.tensor(counts).double()
        return torch.sigmoid(2 * (counted_[:, 0] - counted_[:, 1]))[None]


@pytest.mark.parametrize("name", GSHF_DPO)
def test_gshf_dpo_learns_with_every_enhancer(pair, name):
    policy = dataclasses.replace(pair[3], training=Training(Descent(12, 0.02)), known={})
    problem = Problem(policy.world(), cast(Any, Zeros(policy.catalogue)), 0.2)
    results: Any = simulate(
        problem, cast(Any, rows.direct_row(name)), rounds=3, batch_size=24, policy=policy, metrics=["queries"]
    )
    uniforms = np.random.default_rng(2).random(400).tolist()
    before, after = (np.mean([r.count(0) for r in p.generate([0] * 400, uniforms)]) for p in (policy, results.policy))
    assert after > before + 0.2

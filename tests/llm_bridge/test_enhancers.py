"""GSHF's enhancers on a sampled LM: each draws its exact law, computed on the same model with all responses listed."""

import dataclasses
import itertools
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_bridge import EnumerableLM, LMPolicy, Training, rows
from llm_bridge.catalogue import Catalogue
from llm_bridge.enhancers import GSHF_DPO, Among, BestOfDraws, Heated, Likeliest, Rejection, Resampled
from simbandit.algorithms.direct import Expected
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
    reference = dataclasses.replace(
        LMPolicy.of(model, None, [[0, 1]], max_new_tokens=2), catalogue=Catalogue([[0, 1]], [10**6])
    )
    current, now = moved(reference, 0)
    ref = law_of(reference)
    assert (now - ref).abs().max() > 0.5
    return Cast(current, reference, reference, {4: reference}), now, ref, reference


def moved(lm: LMPolicy, seed: int) -> tuple[LMPolicy, Tensor]:
    """Another policy of the same body, and its listed law."""
    noise = np.random.default_rng(seed)
    weights = [w + 0.2 * torch.from_numpy(noise.normal(size=tuple(w.shape))) for w in lm.weights]
    other = dataclasses.replace(lm, weights=weights, known={})
    return other, law_of(other)


def law_of(lm: LMPolicy) -> Tensor:
    return EnumerableLM(lm.model, [[0, 1]], 2).table.detach()[0, 0]


def counted(policy: Any, pair: Any, n: int = N) -> Tensor:
    """Shares of the listed responses in n draws, by tokens."""
    known = pair[3].world().instance(1, Draws(0, 1)).evaluation.ref_log_probs
    contexts = Contexts(index=torch.zeros(1, n, dtype=torch.int64), ref_log_probs=known.expand(1, n, -1))
    ids = policy.sample(contexts, torch.from_numpy(np.random.default_rng(5).random((1, n))))[0]
    tokens = [pair[3].catalogue.tokens(0, int(i)) for i in ids]
    numbers = np.array([3 * a + b for a, b in tokens])
    return torch.from_numpy(np.bincount(numbers, minlength=9) / n)


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


def resampled(now: Tensor, ref: Tensor, a: float, b: float, n: int) -> Tensor:
    """The law of importance resampling, over all n-tuples of draws."""
    groups = torch.tensor(list(itertools.product(range(len(now)), repeat=n)))
    kept = torch.softmax(((a - 1) * now + b * ref)[groups], dim=-1) * now[groups].sum(-1, keepdim=True).exp()
    return torch.zeros_like(now).scatter_add(0, groups.flatten(), kept.flatten()).log()


@pytest.mark.parametrize(("a", "b", "n"), [(0.5, 0.5, 3), (1.5, -0.5, 2), (0.5, 0.0, 4)])
def test_resampling_draws_its_law_and_tends_to_the_tilt_of_whole_responses(pair, a, b, n):
    now, ref = pair[1], pair[2]
    close(counted(Resampled(a, b, n).policy(pair[0]), pair), resampled(now, ref, a, b, n))
    tilt = normalise(a * now + b * ref).exp()
    few, more = (0.5 * (resampled(now, ref, a, b, m).exp() - tilt).abs().sum() for m in (2, 4))
    assert 0.5 * (now.exp() - tilt).abs().sum() > 0.05
    assert 0.3 < more / few < 0.6  # an error of order 1 / n


def test_the_likeliest_draw_has_its_law_and_is_never_below_greedy_decoding(pair):
    """On a model whose greedy response is not its likeliest: best-of-n by likelihood, and what lies below the greedy
    response falls on that."""
    lm, law = next((lm, law) for lm, law in (moved(pair[3], s) for s in range(99)) if law.max() > law[said(law)] + 0.2)
    greedy = said(law)
    cast_, n = pair[0]._replace(current=lm), 3
    best, below = best_of_n(law, law, n).exp(), law < law[greedy]
    expected = torch.where(below, 0.0, best)
    expected[greedy] += best[below].sum()
    assert expected[greedy] > 0.02 < expected.max() < 0.98
    close(counted(Likeliest(n).policy(cast_), pair), expected.log())
    assert counted(Likeliest(0).policy(cast_), pair)[greedy] == 1
    assert counted(Likeliest(100).policy(cast_), pair, 200)[law.argmax()] == 1


def said(law: Tensor) -> int:
    """The greedy response: the likelier first token, then the likelier second one."""
    start = 3 * int(law.view(3, 3).logsumexp(-1).argmax())
    return start + int(law[start : start + 3].argmax())


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
    players = (Heated(1.5), BestOfDraws(4), Rejection(1.0, 4), Among(("current", "reference")), Resampled(0.5, 0.5))
    for player in (*players, Likeliest(1)):
        policy: Any = player.policy(pair[0])
        uniforms = np.random.default_rng(1).random(12).tolist()
        together = policy.generate([0] * 12, uniforms)
        assert together == [policy.generate([0], [u])[0] for u in uniforms]
        assert len(set(together)) > 1 or player == Likeliest(1)


def test_listed_players_are_drawn_on_an_lm(pair):
    row = rows.direct_row("online_dpo", players=(Best(3), Mixed(0.25)))
    assert row.players == (BestOfDraws(3), Among(("current", "reference"), (0.75, 0.25)))
    assert rows.direct_row("gshf_dpo").players == GSHF_DPO["gshf_dpo"]
    assert rows.direct_row("ipo_md").players == (Resampled(0.875, 0.125),) * 2
    assert rows.direct_row("selm").calibration == Likeliest()
    assert rows.direct_row("vpo", calibration=Expected("argmax")).calibration == Likeliest()
    assert rows.direct_row("online_dpo", players=(Tilt(1, 0), Tilt(0, 1))).players == (Tilt(1, 0), Tilt(0, 1))
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
        (lambda: Resampled(0.5, 0.5, 0), "n: must be at least 1"),
        (lambda: Likeliest(-1), "n: must be at least 0"),
        (
            lambda: rows.direct_row("online_dpo", players=("current", "uniform")),
            "players: 'uniform' draws from the list",
        ),
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

"""The preflight page: what a pool costs against the list of all responses, what a judge is like, what a run costs."""

import json
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from llm_bridge import EnumerableLM, LMPolicy, Training, diagnosis, enhancers, gaps, plans, rows
from llm_bridge import oracles as judges
from llm_bridge import policy as policies
from llm_bridge import preflight as pages
from llm_bridge import toy as toys
from llm_bridge.candidates import Pool, drawn_pool
from llm_bridge.evaluation import Evaluation
from simbandit import algorithms
from simbandit.equilibrium import duality_gap, solve
from simbandit.guarantees.statistics import mean_interval
from simbandit.metrics import kl
from simbandit.objective import Descent
from simbandit.policies import gibbs
from simbandit.simulate import Problem, simulate
from tests.llm_bridge import models

CYCLE = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])


class Listed:
    """A law over 40 responses to 12 prompts, their rewards, and a game on them, all listed."""

    prompts, responses, kl_coef = 12, 40, 0.5

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.ref = torch.log_softmax(torch.from_numpy(rng.normal(size=(self.prompts, self.responses))), -1)
        self.rewards = torch.from_numpy(rng.normal(size=self.ref.shape))
        skew = rng.normal(size=(self.responses, self.responses))
        self.wins = torch.sigmoid(torch.from_numpy(skew - skew.T))

    @property
    def judge(self) -> Any:
        return judges.Preferring(lambda prompt, a, b: float(self.wins[int(a), int(b)]))

    def pool(self, k: int, rng: np.random.Generator) -> Pool:
        rows = []
        for x, law in enumerate(self.ref.exp().numpy()):
            draws: dict[int, list[int]] = {}
            for i, a in enumerate(rng.choice(self.responses, size=k, p=law / law.sum())):
                draws.setdefault(int(a), []).append(i)
            for a, which in draws.items():
                told = {"prompt": x, "prompt_text": str(x), "response_text": str(a), "tokens": [a], "draws": which}
                told |= {"drawn": len(which), "reward": float(self.rewards[x, a])}
                rows.append(told | {"ref_log_prob": float(self.ref[x, a])})
        return Pool(pd.DataFrame(rows), np.zeros((len(rows), 1)))

    def exact(self, pool: Pool, k: int, *, rewarded: bool) -> float:
        """The mean gap, over all responses, of the best policy on each prompt's first k draws."""
        found = []
        for x in range(self.prompts):
            part = pool.frame[pool.frame["prompt"] == x]
            at = [tokens[0] for tokens, draws in zip(part["tokens"], part["draws"], strict=True) if min(draws) < k]
            within = torch.full_like(self.ref[0], -torch.inf)
            within[at] = self.ref[x, at]
            within = within - within.logsumexp(0)
            if rewarded:
                pi = gibbs(self.rewards[x], within, self.kl_coef)
                found.append(self.kl_coef * kl(pi, gibbs(self.rewards[x], self.ref[x], self.kl_coef)))
            else:
                pi = solve(self.wins, within, self.kl_coef).log_probs
                found.append(duality_gap(pi, self.wins, self.ref[x], self.kl_coef))
        return float(torch.stack(found).mean())


@pytest.mark.parametrize("rewarded", [True, False], ids=["reward", "game"])
def test_the_cost_of_candidates_is_the_exact_gap_over_all_responses(rewarded):
    """With 4,000 held-out draws to 1 %, in nested pools; the part for silence exactly."""
    world, rng = Listed(), np.random.default_rng(1)
    pool, held = world.pool(7, rng), world.pool(4000, rng)
    found = diagnosis.restriction(pool, held, world.judge, world.kl_coef, rewarded=rewarded)
    assert found["k"].tolist() == [2, 4, 7]
    for row in found.to_dict("records"):
        assert row["cost"] == pytest.approx(world.exact(pool, row["k"], rewarded=rewarded), rel=0.01)
        assert row["low"] < row["cost"] < row["high"]
        mass = []
        for _, part in pool.frame.groupby("prompt"):
            first = np.array([min(draws) for draws in part["draws"]])
            mass.append(np.logaddexp.reduce(part["ref_log_prob"].to_numpy()[first < row["k"]]))
        assert row["silence"] == pytest.approx(-(1 if rewarded else 2) * world.kl_coef * np.mean(mass), rel=1e-12)


def test_few_held_out_draws_are_enough_on_average_and_their_interval_covers():
    """20 draws: no bias beyond 3 %, and the interval over prompts covers the pool's own cost in 90 % of 200 pools."""
    world, rng = Listed(), np.random.default_rng(2)
    law = world.ref.exp().repeat(200, 1)
    drawn = torch.from_numpy((law.cumsum(-1).numpy()[:, None] < rng.random((len(law), 25, 1))).sum(-1)).view(
        200, 12, 25
    )
    own, held = drawn[..., :5], drawn[..., 5:]
    ref, rewards = (t.expand(200, -1, -1) for t in (world.ref, world.rewards))
    offered = torch.zeros_like(ref, dtype=torch.bool).scatter(-1, own, True)
    within = torch.where(offered, ref, -torch.inf)
    found = gaps.restriction_cost(within, rewards, rewards.gather(-1, held), ~offered.gather(-1, held), world.kl_coef)
    best = gibbs(rewards, ref, world.kl_coef)
    exact = -world.kl_coef * torch.where(offered, best, -torch.inf).logsumexp(-1)
    errors = (found.cost.mean(-1) / exact.mean(-1) - 1).numpy()
    mean, low, high = mean_interval(errors)
    assert high - low < 0.03
    assert abs(mean) < 0.03
    intervals = [mean_interval(row.numpy()) for row in found.cost]
    covered = [i.low <= e <= i.high for i, e in zip(intervals, exact.mean(-1).tolist(), strict=True)]
    assert np.mean(covered) >= 0.9


def test_without_held_out_draws_only_nested_pools_are_measured():
    world = Listed()
    pool = world.pool(6, np.random.default_rng(3))
    found = diagnosis.restriction(pool, None, world.judge, world.kl_coef, rewarded=True)
    assert found["k"].tolist() == [2, 4]
    one = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="at least 2 held-out draws a prompt, got 1"):
        gaps.restriction_cost(one, one, one, one > 0, 0.1)


# --------------------------------------------------------------------------------------- a trained model's own gap


WORDS = ["<end>", "a", "b", "c", "<unk>"]


def listed_model(scale: float) -> Any:
    """A GPT-2 in float64 over five words, weights by `scale` away from a common start."""
    model = models.gpt2(len(WORDS), 12, n_embd=16, n_head=2).double()
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.from_numpy(rng.normal(size=tuple(p.shape))))
    return model


def words() -> PreTrainedTokenizerFast:
    inner = Tokenizer(tokenizer_models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unk>")


def preferred(prompt: str, first: str, second: str) -> float:
    del prompt
    return float(CYCLE[len(first.split()) % 3, len(second.split()) % 3])


def liked(prompt: str, response: str) -> float:
    return len(response.split()) / 2 - response.count("b") * len(prompt)


@pytest.mark.parametrize("rewarded", [True, False], ids=["reward", "game"])
def test_a_sampled_gap_is_the_one_of_the_list(rewarded):
    """Prompts of two lengths, responses of at most three tokens: 3,000 draws against all 85 responses."""
    prompts, kl_coef = [[1], [2, 3]], 1.0
    reference, policy = (LMPolicy.of(listed_model(scale), words(), prompts, max_new_tokens=3) for scale in (0.0, 0.15))
    assert 0 in reference.catalogue.end
    lists = [EnumerableLM(listed_model(scale), prompts, 3, end=0) for scale in (0.0, 0.15)]
    ref, pi = (lm.table[0].detach() for lm in lists)
    texts = [str(words().decode(list(t), skip_special_tokens=True)) for t in lists[0].responses()]
    if rewarded:
        rewards = torch.tensor([[liked(p, t) for t in texts] for p in ("a", "b c")], dtype=torch.float64)
        exact = kl_coef * kl(pi, gibbs(rewards, ref, kl_coef))
        gap = gaps.SampledGap(reference, kl_coef, scorer=judges.Written(liked), size=3000, against=3000)
    else:
        table = torch.tensor([[preferred("", a, b) for b in texts] for a in texts], dtype=torch.float64)
        exact = torch.stack([duality_gap(p, table, r, kl_coef) for p, r in zip(pi, ref, strict=True)])
        gap = gaps.SampledGap(reference, kl_coef, judge=judges.Preferring(preferred), size=3000, against=3000)
    found, nats = gap.of(policy)
    assert float(exact.min()) > 0.02
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.005)
    torch.testing.assert_close(nats, kl(pi, ref), rtol=0.1, atol=0.0)
    assert float(gap.of(reference)[1].abs().max()) < 1e-12
    assert [name for name, _ in gap.metrics()] == ["suboptimality" if rewarded else "duality_gap", "kl_to_ref"]
    with pytest.raises(ValueError, match="scorer, judge: give one of them"):
        gaps.SampledGap(reference, kl_coef)


def test_a_cross_table_asks_each_pair_once_in_both_orders():
    asked = []

    def sided(prompt: str, first: str, second: str) -> float:
        asked.append((first, second))
        return 0.9 if first < second else 0.3

    table = gaps.cross_table(
        judges.Preferring(sided), [("p", "a"), ("p", "b"), ("p", "a")], [("p", "b"), ("p", "c"), ("p", "b"), ("p", "b")]
    )
    assert sorted(asked) == sorted([("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")])
    assert table.shape == (3, 4)
    assert table[0].tolist() == pytest.approx([0.8] * 4)
    assert table[1].tolist() == pytest.approx([0.5, 0.8, 0.5, 0.5])


# -------------------------------------------------------------------------------------------------- judge and steps


def test_a_cycle_is_told_from_a_reward():
    ref = np.log(np.full((4, 3), 1 / 3))
    cyclic = diagnosis.judged(ref, np.tile(CYCLE, (4, 1, 1)), 0.2)
    assert cyclic["circulating"] == pytest.approx(1.0)
    assert cyclic["frequency"] == pytest.approx(0.4 / np.sqrt(3))  # eigenvalues +- i .4 sqrt 3 of P - 1/2, times 1/3
    assert cyclic["largest_ratio"] == pytest.approx(1.0)
    assert cyclic["coverage"] == pytest.approx(1.0)
    rewards = np.tile([0.0, 1.0, 2.0], (4, 1))
    table = 1 / (1 + np.exp(rewards[:, None] - rewards[:, :, None]))
    told = diagnosis.judged(ref, table, 0.5, rewards)
    best = np.exp(rewards[0] / 0.5) / np.exp(rewards[0] / 0.5).sum()
    assert told["circulating"] < 1e-20
    assert told["misfit"] < 1e-6
    assert told["largest_ratio"] == pytest.approx(3 * best[2])
    assert told["coverage"] == pytest.approx((best**2).sum() * 3)
    assert diagnosis.explains(rewards, ref, table)
    assert not diagnosis.explains(2 * rewards, ref, table)
    assert not diagnosis.explains(rewards, ref, np.tile(CYCLE, (4, 1, 1)))
    assert diagnosis.reference_gap(ref, np.tile(CYCLE, (4, 1, 1)), 0.2) == pytest.approx(0.0, abs=1e-12)
    expected = 0.5 * (np.log(np.exp(rewards[0] / 0.5).mean()) - rewards[0].mean() / 0.5)
    assert diagnosis.reference_gap(ref, table, 0.5, rewards) == pytest.approx(expected)


def test_the_judges_test_keeps_its_level_and_finds_a_cycle():
    """Of 40 judges with a reward about 2 are refuted at 5 %; a cycle always is. The whole budget is not exceeded."""
    rng = np.random.default_rng(4)
    rejected = 0
    for seed in range(40):
        rewards = rng.normal(size=(5, 7))
        table = 1 / (1 + np.exp(rewards[:, None] - rewards[:, :, None]))
        found = diagnosis.judge_test(np.zeros((5, 7)), table, 320, seed=seed, simulations=99)
        assert (found.duels, found.prompts) == (300, 2)
        rejected += found.p_value <= 0.05
    assert rejected <= 6  # P(more than 6 of 40 at 5 %) = .004
    cyclic = np.kron(CYCLE - 0.5, np.ones((2, 2))) + 0.5
    for seed in range(5):
        found = diagnosis.judge_test(np.zeros((5, 6)), np.tile(cyclic, (5, 1, 1)), 320, seed=seed, simulations=99)
        assert found.p_value <= 0.01
    assert diagnosis.judge_test(np.zeros((3, 2)), np.full((3, 2, 2), 0.5), 320).p_value == 1.0


def test_steps_beyond_the_limit_are_named():
    def told(name: str, frequency: float, **parameters: Any) -> list[str]:
        return pages.step_warnings(name, algorithms.create(name, **parameters), 0.1, frequency)

    assert told("inpo", 0.0) == []
    (line,) = told("inpo", 0.5)
    assert line.startswith("inpo: step_size 1 is beyond 0.769 = 2 kl_coef / (kl_coef^2 + omega^2)")
    assert told("inpo", 0.5, step_size=0.7) == []
    assert "at every step_size" in told("sppo", 0.2)[0]
    assert told("sppo", 0.0) == []
    assert told("onpo", 0.2) == told("gshf_online", 0.2) == told("online_dpo", 0.2) == []


# --------------------------------------------------------------------------------------------------------- the page


def planted() -> pages.Preflight:
    """`a` beats `b` by .1 in every replicate, although both scatter by 1; `c` is told apart from neither."""
    rng = np.random.default_rng(6)
    noise = rng.normal(size=17)
    values = {"b": noise + 5.1, "a": noise + 5.0, "c": rng.normal(size=17) + 5.6}
    parts = [
        {"algorithm": name, "kl_coef": k, "replicate": r, "round": t, "queries": 8.0 * t, "metric": "duality_gap"}
        | {"value": float(v[r]) * k * (1 if t else 2)}
        for name, v in values.items()
        for k in (0.1, 0.2, 0.4)
        for t in (0, 3)
        for r in range(17)
    ]
    names = ("candidates", "circulating", "misfit", "frequency", "largest_ratio", "coverage")
    told: dict[str, float] = dict.fromkeys(names, 0.5)
    told |= dict.fromkeys(("k", "prompts", "test_duels", "test_prompts", "test_statistic", "test_p_value"), 3.0)
    cost = pd.DataFrame({"k": [2, 3], "cost": [0.4, 0.2], "low": [0.3, 0.1], "high": [0.5, 0.3]})
    cost = cost.assign(silence=[0.2, 0.1], effective=[9.0, 1.5])
    start = {0.1: 0.01, 0.2: 7.0, 0.4: 7.0}
    return pages.Preflight(pd.DataFrame(parts), told, start, cost, ["b: warned"], {}, 0.2)


def test_the_ranking_is_paired():
    page = planted()
    ranking: Any = page.ranking()
    pairs: Any = page.comparisons().set_index(["better", "worse"])
    assert ranking["algorithm"].tolist()[0] == "a"
    assert ranking.set_index("algorithm").loc["a", "beats"] == ["b"]
    assert ranking["queries"].tolist() == [24.0] * 3
    assert (ranking["low"].to_numpy() < ranking["gap"].to_numpy()).all()
    assert ranking["high"].iloc[0] > ranking["low"].iloc[1]  # intervals overlap, and yet a beats b
    assert pairs.loc[("a", "b"), "difference"] == pytest.approx(0.02)
    assert pairs.loc[("a", "b"), "significant"]
    assert pairs["significant"].sum() == 1
    text = str(page)
    assert "1. a  " in text
    assert "better than b\n" in text
    assert "1.5 held-out draws carry it, so it may be more" in text
    assert "K = 2    0.4 [0.3, 0.5], 0.2 of it for silence\n" in text
    assert "b: warned" in text
    with pytest.raises(ValueError, match=r"kl_coef: must be one of \[0.1, 0.2, 0.4\], got 0.3"):
        page.ranking(0.3)
    assert "further from the target" not in text
    assert page.sensitivity().loc["a", 0.4] == pytest.approx(2 * page.sensitivity().loc["a", 0.2])


def test_the_page_is_saved_for_machines(tmp_path):
    page = planted()
    files = {file.name for file in page.save(tmp_path / "out")}
    assert files == {"page.txt", "report.json", "replicates.parquet", "figure.png", "figure.svg"}
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["algorithm"] for row in told["ranking"]] == page.ranking()["algorithm"].tolist()
    assert told["restriction"][1]["cost"] == 0.2
    again = pd.read_parquet(tmp_path / "out" / "replicates.parquet")
    pd.testing.assert_frame_equal(again, page.frame)
    assert (tmp_path / "out" / "page.txt").read_text() == f"{page}\n"


def test_a_preflight_predicts_the_simulators_numbers(toy):
    """On a reward the suboptimality ranks, on cyclic raters the duality gap; each number is the simulator's."""
    policy = LMPolicy.from_pretrained(toy, ["about boat :", "about cow :", "about drum :"], max_new_tokens=24)
    for scorer, judge, metric in (
        (judges.Written(toys.true_reward), judges.BradleyTerry(judges.Written(toys.true_reward)), "suboptimality"),
        (None, judges.Preferring(toys.intransitive_raters), "duality_gap"),
    ):
        pool = drawn_pool(policy, 6, scorer=scorer)
        held = drawn_pool(policy, 4, scorer=scorer, purpose="held out")
        assert set(pool.frame["ref_log_prob"].tolist()) != set(held.frame["ref_log_prob"].tolist())
        options: Any = {"rounds": 3, "batch_size": 9, "replicates": 5}
        page = pages.preflight(policy, pool, judge, ["greedy", "sppo"], kl_coef=0.2, held=held, dim=3, **options)
        assert page.metric == metric
        world = pool.world(3)
        oracle = pages.preference_table(world, judge)
        results = simulate(
            Problem(world, oracle, 0.2), algorithms.create("greedy"), metrics=[metric], record=[3], **options
        )
        frame = results.frame()
        np.testing.assert_allclose(page.values()["greedy"], frame[frame["round"] == 3]["value"])
        np.testing.assert_allclose(page.start[0.2], frame[frame["round"] == 0]["value"].mean(), rtol=1e-6)
        assert page.cost["k"].tolist() == [2, 4, 6]
        assert page.warnings == pages.step_warnings("sppo", algorithms.create("sppo"), 0.2, page.judge["frequency"])
        assert list(page.plans) == ["sppo"]
    with pytest.raises(ValueError, match="replicates: an interval needs at least 2"):
        pages.preflight(policy, pool, judge, ["greedy"], kl_coef=0.2, replicates=1)
    with pytest.raises(ValueError, match="names: different algorithms"):
        pages.preflight(policy, pool, judge, ["greedy", "greedy"], kl_coef=0.2)


# ---------------------------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize(
    ("name", "minibatch"),
    [
        ("inpo", None),
        ("online_dpo", 5),
        ("dpo", None),
        ("sail_pp", None),
        ("onpo", None),
        ("ipo_md", None),
        ("selm", None),
        ("gshf_dpo_rejection", None),
    ],
)
def test_a_plan_counts_what_a_run_does(toy, monkeypatch, name, minibatch):
    """Responses drawn, scored and trained on, and questions, against a run that is watched; equal responses, which are
    scored once, keep the counts from being exact."""
    seen = dict.fromkeys(("drawn", "scored", "trained"), 0)
    decode, score = policies.decode, policies.sequence_log_probs

    def watched_decode(model: Any, prompts: Any, *rest: Any, **options: Any) -> Any:
        seen["drawn"] += len(prompts)
        return decode(model, prompts, *rest, **options)

    def watched_score(model: Any, prompts: Any, *rest: Any, gradients: bool = False, **options: Any) -> Any:
        seen["trained" if gradients else "scored"] += len(prompts)
        return score(model, prompts, *rest, gradients=gradients, **options)

    monkeypatch.setattr(policies, "decode", watched_decode)
    for module in (policies, enhancers):
        monkeypatch.setattr(module, "sequence_log_probs", watched_score)
    training = Training(Descent(4, 1e-4), minibatch=minibatch)
    prompts = [f"about {noun} :" for noun in ("boat", "cow", "drum")]
    policy = LMPolicy.from_pretrained(toy, prompts, max_new_tokens=20, training=training)
    judge = judges.Cached(judges.BradleyTerry(judges.Written(toys.true_reward)))
    row: Any = rows.direct_row(name)
    evaluation = Evaluation(policy, judge, size=7)
    simulate(
        Problem(policy.world(), judges.TextOracle(policy.catalogue, judge), 0.2),
        row,
        rounds=3,
        batch_size=11,
        policy=policy,
        metrics=evaluation.metrics(),
        record="all",
    )
    run = plans.Run(3, 11, 4, minibatch, 7).under(row)
    expected = run.responses()
    least = 0.85 if name == "selm" else 1.0  # a prompt's greedy response is decoded once a round
    assert least * expected["drawn"] <= seen["drawn"] <= expected["drawn"]
    assert 0.8 * expected["trained"] <= seen["trained"] <= expected["trained"]
    laws = 2 * 7 * (2 if row.offline else 4)  # the evaluation's own passes do not go through the scorer
    assert 0.8 * (expected["scored"] - laws) <= seen["scored"] <= expected["scored"] - laws
    assert 0.8 * expected["asked"] <= judge.asked <= expected["asked"]


def test_a_plans_arithmetic(toy):
    policy = LMPolicy.from_pretrained(toy, ["about boat :"], max_new_tokens=20)
    size = plans.Size.of(policy.model)
    assert (size.parameters, size.held, size.layers, size.width) == (84144, 4 * 84144, 2, 48)
    plan = plans.longest(policy, plans.Run(5, 8, 3))
    assert plan.hours is None
    assert plan.run.responses() == {"drawn": 80, "scored": 144, "trained": 240, "asked": 40}
    assert plan.tokens["trained"] == 240 * 24
    each = 2 * 84144 + 2 * 2 * 48 * 24
    assert plan.flops == each * 24 * (80 + 144 + 3 * 240)
    rates = plans.given(1e6, plan, question=2.0)
    assert plans.dataclasses.replace(plan, rates=rates).hours == pytest.approx((plan.flops / 1e6 + 80) / 3600)
    assert plan.memory["gradient and moments"] == 3 * 4 * 84144
    told = json.loads(json.dumps(plan.as_dict()))
    assert told["tokens"]["drawn"] == 80 * 24
    with pytest.raises(ValueError, match="flops: must be a rate > 0"):
        plans.given(0.0, plan)
    assert [plans.size(n) for n in (5.0, 2048.0, 3 * 2.0**30)] == ["5 B", "2 KiB", "3 GiB"]
    assert [plans.duration(s) for s in (3.0, 600.0, 36000.0)] == ["3 s", "10 min", "10 h"]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it
def test_an_adapter_trains_few_of_the_weights():
    policy = LMPolicy.of(
        peft.get_peft_model(toys.untrained(), peft.LoraConfig(r=2, target_modules="all-linear")), None, [[1]]
    )
    size = plans.Size.of(policy.model)
    assert size.parameters - size.trainable == 84144
    assert 0 < size.trainable_bytes == 4 * size.trainable < 0.2 * size.held


def test_rates_are_measured_and_leave_the_weights_alone(toy):
    policy = LMPolicy.from_pretrained(toy, ["about boat :", "about cow :"], max_new_tokens=20)
    before = [w.clone() for w in policy.weights]
    rates, prompt, response = plans.measured(policy, responses=10)
    assert prompt == 4
    assert 3 < response <= 20
    assert rates.scoring > rates.training > 0
    assert "10 responses" in rates.source
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert all(p.grad is None for p in policy.model.parameters())

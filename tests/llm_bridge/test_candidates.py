"""Annotators of text, and pools of candidates as worlds of the simulator."""

import dataclasses
import json
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers

from llm_bridge import LMPolicy, candidate_pool, loading, preference_table, sequence_log_probs
from llm_bridge import candidates as pools
from llm_bridge import oracles as judges
from llm_bridge import toy as toys
from simbandit import algorithms
from simbandit.algorithms.direct import Direct
from simbandit.draws import Draws
from simbandit.oracles import BradleyTerry, FullInformation, NoisyReward
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts
from tests.llm_bridge import models

PROMPTS = ["about boat :", "about cow :", "about drum :", "about comet :"]
TRUE = judges.Written(toys.true_reward)


@pytest.fixture(scope="module")
def policy(toy):
    return LMPolicy.from_pretrained(toy, PROMPTS, max_new_tokens=24)


# ------------------------------------------------------------------------------------------------------------- judges


def test_bradley_terry_of_a_scorer():
    judge = judges.BradleyTerry(judges.Written(toys.length_reward), temperature=0.1)
    p, q, half = judge([("", "a b c", "a"), ("", "a", "a b c"), ("", "a", "b")])
    assert p == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert p + q == pytest.approx(1.0)
    assert half == 0.5
    with pytest.raises(ValueError, match="temperature: must be > 0"):
        judges.BradleyTerry(TRUE, 0.0)


def test_the_oracle_reads_the_catalogue(policy):
    oracle = judges.TextOracle(policy.catalogue, judges.Preferring(toys.intransitive_raters), soft=True).bind(None)
    tokenizer = policy.tokenizer
    ids = [
        policy.catalogue.intern(1, [*tokenizer(text)["input_ids"], 2])
        for text in ("the cow .", "the old cow .", "a cow .")
    ]
    contexts = Contexts(index=torch.tensor([[1, 1]]), ref_log_probs=torch.zeros(1, 2, 9))
    actions = torch.tensor([[[ids[0], ids[1]], [ids[2], ids[0]]]])
    assert oracle.respond(contexts, actions, Draws(0, 1).at(0)).tolist() == [[0.9, 0.5]]
    hard = judges.TextOracle(policy.catalogue, oracle.judge).bind(None)
    many = torch.stack([hard.respond(contexts, actions, Draws(0, 1).at(t)) for t in range(400)])
    assert set(many.flatten().tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(many.mean(0)[0], [0.9, 0.5], atol=4 * 0.5 / 20)


def test_answers_are_kept_by_content(tmp_path):
    asked = []

    def counting(prompt: str, first: str, second: str) -> float:
        asked.append((prompt, first, second))
        return 0.25

    file = tmp_path / "answers.jsonl"
    judge = judges.Cached(judges.Preferring(counting), file)
    questions = [("p", "a", "b"), ("p", "b", "a"), ("p", "a", "b")]
    assert judge(questions) == [0.25] * 3
    assert len(asked) == judge.asked == 2
    with file.open("a") as half:
        half.write('{"key": "kill')
    again = judges.Cached(judges.Preferring(counting), file)
    assert again([*questions, ("q", "a", "b")]) == [0.25] * 4
    assert len(asked) == 3
    assert judges.Cached(judges.Preferring(counting), file)([("q", "a", "b")]) == [0.25]
    with pytest.raises(ValueError, match=r"holds the answers of preferring.*counting"):
        judges.Cached(judges.Preferring(toys.intransitive_raters), file)
    with pytest.raises(ValueError, match=r"judge: gave 1.5 for .*lies in \[0, 1\]"):
        judges.Cached(judges.Preferring(lambda p, a, b: 1.5))([("p", "a", "b")])


def test_a_pair_judge_averages_both_orders(policy):
    tokenizer, model = policy.tokenizer, policy.model
    judge = judges.PairJudge(model, tokenizer, "about boat : {first} {second} the", ("boat", "sailor"), least=1e-4)
    p, q = judge([("", "old .", "new ."), ("", "new .", "old .")])
    assert p + q == pytest.approx(1.0, abs=1e-6)
    prompts = [
        [1, *tokenizer(t)["input_ids"]] for t in ("about boat : old . new . the", "about boat : new . old . the")
    ]
    said = [tokenizer(word)["input_ids"] for word in ("boat", "sailor")]
    logs = sequence_log_probs(model, [prompt for prompt in prompts for _ in said], said * 2).view(2, 2)
    shown, turned = logs.softmax(-1)[:, 0].tolist()
    assert p == pytest.approx((shown + 1 - turned) / 2, abs=1e-6)
    assert judge.position_bias() == pytest.approx((shown + turned) / 2 - 0.5, abs=1e-6)
    with pytest.raises(ValueError, match=r"says neither 'boat' nor 'sailor' to question 0 .*change the template"):
        judges.PairJudge(model, tokenizer, judge.template, judge.answers, least=0.99)([("", "old .", "new .")])


def test_a_gold_model_and_a_reward_head(policy, toy):
    gold = judges.GoldLM(policy.model, policy.tokenizer)
    good, bad = gold([("about boat :", "the boats drift a net ."), ("about boat :", "the boats drifts a net .")])
    assert good > bad + 2
    config = models.llama().config
    config.num_labels, config.vocab_size = 1, 212
    head = models.randomised(transformers.LlamaForSequenceClassification(config))
    scorer = judges.RewardModel(head, policy.tokenizer)
    pairs = [("about boat :", "the boats drift a net ."), ("about cow :", "a cow ."), ("about cow :", "the old cow .")]
    scores = scorer(pairs)
    for (prompt, response), score in zip(pairs, scores, strict=True):
        ids = torch.tensor([policy.tokenizer(f"{prompt} {response}")["input_ids"]])
        with torch.no_grad():
            expected = head.score(head.model(input_ids=ids, use_cache=False).last_hidden_state[0, -1])
        assert score == pytest.approx(float(expected), abs=1e-5)
    config.num_labels = 3
    with pytest.raises(ValueError, match="a reward model has one output, this one has 3"):
        judges.RewardModel(transformers.LlamaForSequenceClassification(config), policy.tokenizer)


# -------------------------------------------------------------------------------------------------------------- pools


def test_a_pool_is_what_was_drawn_and_scored(policy):
    world = candidate_pool(policy, 12, scorer=TRUE, dim=5, law="reference")
    assert (world.n_contexts, world.dim) == (4, 5)
    ref = np.asarray(world.ref_log_probs)
    assert world.context_names == tuple(PROMPTS)
    assert world.item_names is not None
    for x, items in enumerate(world.item_names):
        assert 2 <= len(items) <= 12
        said = [[*policy.tokenizer(text)["input_ids"], 2] for text in items]
        scored = sequence_log_probs(policy.model, [policy.catalogue.prompts[x]] * len(said), said).double()
        expected = (scored - scored.logsumexp(0)).numpy()
        ended = [len(s) <= 24 for s in said]
        if all(ended):
            np.testing.assert_allclose(ref[x, : len(items)], expected, atol=1e-4)
        assert (ref[x, len(items) :] == -np.inf).all()
        rewards = [toys.true_reward(PROMPTS[x], str(text)) for text in items]
        np.testing.assert_allclose(np.asarray(world.rewards)[x, : len(items)], rewards, rtol=1e-12)
    present = ref > -np.inf
    rows = np.asarray(world.features)[present]
    np.testing.assert_allclose(rows.mean(0), 0.0, atol=1e-9)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(5) / 5, atol=1e-9)


def test_every_model_based_family_runs_on_a_pool(policy):
    world = candidate_pool(policy, 8, scorer=TRUE, dim=4)
    table = preference_table(world, judges.Preferring(toys.intransitive_raters))
    rewarded = ["gshf_online", "greedy", "uniform", "two_stage"]
    for name in [*rewarded, "oelhf", "nash_greedy"]:
        oracle = BradleyTerry() if name in rewarded else table
        gap = "suboptimality" if name in rewarded else "duality_gap"
        problem = Problem(world, cast(Any, oracle), 0.2)
        results = simulate(problem, algorithms.create(name), rounds=4, batch_size=5, replicates=3, metrics=[gap])
        assert np.isfinite(results.frame()["value"]).all()
        assert len(results.frame()) == 3 * 5


@pytest.fixture(scope="module")
def ragged(policy):
    """A pool whose prompts have different numbers of candidates, because equal draws count once."""
    pool = pools.drawn_pool(policy, 7, scorer=TRUE, temperature=0.1)
    assert len(set(pool.frame.groupby("prompt").size())) > 1
    return pool


def test_equal_draws_count_once_and_are_remembered(policy, ragged):
    frame = ragged.frame
    assert not frame.duplicated(["prompt", "response_text"]).any()
    assert (frame["drawn"] == frame["draws"].map(len)).all()
    assert frame["drawn"].max() > 1
    for _, part in frame.groupby("prompt"):
        assert sorted(i for draws in part["draws"] for i in draws) == list(range(7))
    ref = np.asarray(ragged.world(3, "reference").ref_log_probs)
    np.testing.assert_allclose(np.exp(ref).sum(1), 1.0, rtol=1e-12)
    first = frame.groupby("prompt")["ref_log_prob"].first().to_numpy()
    second = frame["ref_log_prob"].to_numpy()[np.flatnonzero(frame["prompt"].diff().fillna(1)) + 1]
    np.testing.assert_allclose(ref[:, 0] - ref[:, 1], first - second, rtol=1e-9)


def test_the_law_of_a_pool_is_that_of_its_draws_unless_asked_otherwise(policy):
    short = dataclasses.replace(policy, max_new_tokens=1)  # so that a response is drawn more than once
    pool = pools.drawn_pool(short, 40, scorer=TRUE)
    counts = np.asarray(pool.table(pool.frame["drawn"].to_numpy(), 0.0))
    assert counts.max() > 2
    assert pool.frame["truncated"].tolist() == [list(said) != [2] for said in pool.frame["tokens"]]
    held = np.exp(np.asarray(pool.world(2).ref_log_probs))
    np.testing.assert_allclose(held, counts / 40, rtol=1e-12)
    assert pool.world(2) == candidate_pool(short, 40, scorer=TRUE, dim=2)
    assert pool.world(2, "reference") == candidate_pool(short, 40, scorer=TRUE, dim=2, law="reference")
    assert pool.world(2, "reference") != pool.world(2)
    with pytest.raises(ValueError, match="law: must be 'draws' or 'reference', got 'counts'"):
        pool.world(2, cast(Any, "counts"))
    with pytest.raises(ValueError, match=r"law: draws at temperature .* do not follow the reference"):
        candidate_pool(short, 40, dim=None, temperature=0.5)


@pytest.mark.filterwarnings("ignore:damping.*stability limit:UserWarning")  # of iterated best response
@pytest.mark.parametrize("name", [n for n in algorithms.names() if not isinstance(algorithms.create(n), Direct)])
def test_every_algorithm_that_is_not_direct_runs_on_a_ragged_pool(ragged, name):
    algorithm = algorithms.create(name, **({"radius": 1.0} if name == "pessimistic_mle" else {}))
    asked = algorithm.feedbacks[0]
    answers = {"preference": BradleyTerry(), "reward": NoisyReward(0.1), "full": FullInformation(BradleyTerry())}
    problem = Problem(ragged.world(3, "reference"), answers[asked], 0.2)
    results = simulate(problem, algorithm, rounds=3, batch_size=5, replicates=2, keep_data=asked != "full")
    assert np.isfinite(results.frame()["value"]).all()
    if results.data is not None:
        sizes = ragged.frame.groupby("prompt").size().to_numpy()
        for side in set(results.data) & {"first", "second", "action"}:
            assert (results.data[side].to_numpy() < sizes[results.data["context"].to_numpy()]).all()


def test_features_of_a_frozen_encoder(policy, tmp_path):
    config = transformers.BertConfig(
        vocab_size=212, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20
    )
    model = models.randomised(transformers.BertModel(config))
    encoder = pools.TextEncoder(model, policy.tokenizer)
    pool = pools.drawn_pool(policy, 4, encoder=encoder, folder=tmp_path)
    assert pool.states.shape == (len(pool.frame), 12)
    row = pool.frame.iloc[5]
    ids = torch.tensor([policy.tokenizer(f"{row['prompt_text']} {row['response_text']}")["input_ids"]])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state[0].double().mean(0)
    np.testing.assert_allclose(pool.states[5], expected.numpy(), atol=1e-5)
    assert pool.world(6).dim == 6
    with pytest.raises(ValueError, match="holds a pool with another encoder"):
        pools.drawn_pool(policy, 4, folder=tmp_path)


def test_the_table_of_a_judge_is_symmetrised(policy):
    world = candidate_pool(policy, 5, dim=None)
    sided = judges.Preferring(lambda prompt, a, b: 0.8 if len(a) >= len(b) else 0.6)
    table = np.asarray(preference_table(world, sided).preference)
    assert world.item_names is not None
    first, second = (len(str(text)) for text in world.item_names[0][:2])
    expected = 0.5 if first == second else (0.6 if first > second else 0.4)
    assert table[0, 0, 1] == pytest.approx(expected)


def test_a_killed_build_goes_on_where_it_was(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "PART", 2)
    whole = candidate_pool(policy, 6, scorer=TRUE, dim=3)
    calls, built = [], pools._Drawing.part

    def killed(drawing: Any, numbers: range) -> Any:
        calls.append(numbers)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return built(drawing, numbers)

    monkeypatch.setattr(pools._Drawing, "part", killed)
    with pytest.raises(KeyboardInterrupt):
        candidate_pool(policy, 6, scorer=TRUE, dim=3, folder=tmp_path)
    (tmp_path / ".part-000002.parquet.tmp").write_bytes(b"half")
    resumed = candidate_pool(policy, 6, scorer=TRUE, dim=3, folder=tmp_path)
    assert [list(c) for c in calls] == [[0, 1], [2, 3], [2, 3]]
    assert resumed == whole
    assert candidate_pool(policy, 6, scorer=TRUE, dim=3, folder=tmp_path) == whole
    assert len(calls) == 3
    again = pools.drawn_pool(policy, 6, scorer=TRUE)
    assert again.states.tobytes() == pools.drawn_pool(policy, 6, scorer=TRUE, folder=tmp_path).states.tobytes()
    with pytest.raises(ValueError, match="holds a pool with another k; use another folder"):
        candidate_pool(policy, 7, scorer=TRUE, dim=3, folder=tmp_path)
    held = json.loads((tmp_path / "pool.json").read_text()) | {"model": "0" * 16}
    (tmp_path / "pool.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match="holds a pool with another model"):
        candidate_pool(policy, 6, scorer=TRUE, dim=3, folder=tmp_path)


def test_bad_pools_are_refused(policy):
    with pytest.raises(ValueError, match="k: must be at least 2"):
        candidate_pool(policy, 1)
    with pytest.raises(ValueError, match="dim: must be between 1 and"):
        candidate_pool(policy, 3, dim=40)


def test_hidden_features_are_means_over_the_response(policy):
    prompts, responses = models.pairs(7, 3)
    features = pools.hidden_features(policy.model, prompts, responses)
    for i in (0, 4, 7):
        ids = torch.tensor([[*prompts[i], *responses[i]]])
        with torch.no_grad():
            states = policy.model.model(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompts[i]) :]
        torch.testing.assert_close(features[i], states.double().mean(0), rtol=0, atol=1e-4)
    assert loading.fingerprint(policy.model) == loading.fingerprint(policy.model)

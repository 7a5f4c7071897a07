"""The toy language: its floor is exact, the model comes near it, and what annotators like is as stated."""

import itertools
import json
from typing import Any, cast

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llm_bridge import loading, sequence_log_probs
from llm_bridge import toy as toys
from llm_bridge.grammar import Grammar

GRAMMAR = Grammar()


def test_forward_filtering_is_the_sum_over_hidden_paths():
    """On a prefix short enough to enumerate every path of hidden states."""
    text = [GRAMMAR.number_of[word] for word in ["<bos>", "about", "boat", ":", "the", "old", "letters"]]
    total, states = 0.0, range(len(GRAMMAR.states))
    likely = [np.flatnonzero(GRAMMAR.emission[:, word]) for word in text[1:]]
    for path in itertools.product(*likely):
        p = float(path[0] == 0) * GRAMMAR.emission[0, text[1]]
        for word, before, state in zip(text[2:], path, path[1:], strict=False):
            p *= GRAMMAR.transition[before, state] * GRAMMAR.emission[state, word]
        total += p
    assert len(list(states)) == GRAMMAR.emission.shape[0]
    np.testing.assert_allclose(GRAMMAR.log_probs([text])[0], np.log(total), rtol=1e-12)


def test_the_next_word_law_sums_to_one_and_samples_follow_it():
    prefix = [GRAMMAR.number_of[word] for word in ["<bos>", "about", "boat", ":"]]
    nexts = [[*prefix, word] for word in range(len(GRAMMAR.words))]
    law = np.exp(GRAMMAR.log_probs(nexts, given=len(prefix)))
    np.testing.assert_allclose(law.sum(), 1.0, rtol=1e-12)
    texts = GRAMMAR.sample(6000, np.random.default_rng(0))
    third = np.bincount([text[4] for text in texts], minlength=len(law)) / len(texts)
    np.testing.assert_allclose(third, law, atol=5 * np.sqrt(0.25 / len(texts)))  # the article does not see the topic
    assert all(text[0] == 1 and text[-1] == 2 for text in texts)


def test_topics_agreement_and_what_cannot_be_written():
    def log_prob(text: str) -> float:
        return float(GRAMMAR.log_probs([[GRAMMAR.number_of[word] for word in text.split()]])[0])

    good = log_prob("<bos> about boat : the sailors steer a boat . <eos>")
    assert np.isfinite(good)
    assert log_prob("<bos> about boat : the sailors steers a boat . <eos>") == -np.inf  # agreement
    assert log_prob("<bos> about boat : the farmer plows a barn . <eos>") == -np.inf  # the topic of the prompt
    switched = log_prob("<bos> about boat : the sailor likes the boat . the farmer plows a barn . <eos>")
    assert -np.inf < switched < good


def test_the_model_comes_within_five_percent_of_the_floor(toy):
    told = json.loads((toy / "toy.json").read_text())
    assert 1.0 <= told["perplexity"] / told["floor"] <= 1.05
    model = loading.load_model(toy)
    again = toys.judged(model)
    assert again.perplexity == pytest.approx(told["perplexity"], rel=1e-4)
    assert again.floor == pytest.approx(told["floor"], rel=1e-12)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in toy.iterdir()}
    # a text that breaks agreement is far less likely than one that keeps it
    tokenizer = loading.load_tokenizer(toy)
    prompt, *said = (tokenizer(t)["input_ids"] for t in ("about boat :", "the boats drift", "the boats drifts"))
    kept, broken = sequence_log_probs(model, [[1, *prompt]] * 2, said).tolist()
    assert kept > broken + 3


def test_the_tokenizer_and_its_chat_template(toy):
    tokenizer = loading.load_tokenizer(toy)
    texts = GRAMMAR.sample(20, np.random.default_rng(1))
    for text in texts:
        assert tokenizer(GRAMMAR.text(text))["input_ids"] == text[1:-1]
        assert loading.boundary_holds(tokenizer, text[:4], text[4:])
    assert loading.encode_prompts(tokenizer, ["about boat :"], chat=True) == loading.encode_prompts(
        tokenizer, ["about boat :"], chat=False
    )
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat: this tokenizer has no chat template"):
        loading.encode_prompts(tokenizer, ["about boat :"], chat=True)


def test_a_boundary_that_cuts_a_token_is_seen():
    """Byte pairs: "ab" is one token, so a prompt ending in "a" and a response beginning with "b" are not the text's
    tokens, though they read the same."""
    inner = Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "c": 2, "ab": 3}, [("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokenizer("cab")["input_ids"] == [2, 3]
    assert loading.boundary_holds(tokenizer, [2], [3])
    assert not loading.boundary_holds(tokenizer, [2, 0], [1])


def test_prompts_are_shipped(toy):
    lines = [json.loads(line)["prompt"] for line in (toy / "prompts.jsonl").read_text().splitlines()]
    assert lines == GRAMMAR.prompts()
    assert len(set(lines)) == 48


def test_what_annotators_like():
    prompt = "about boat :"
    good, bad = "the good sailors steer a boat .", "the bad farmers plows a rocket ."
    assert toys.grammar_reward(prompt, good) == 1
    assert toys.grammar_reward(prompt, bad) == 0
    assert toys.topic_reward(prompt, good) == 1
    assert toys.topic_reward(prompt, bad) == 0
    assert toys.lexicon_reward(prompt, good) == pytest.approx(3 / 7)
    assert toys.length_reward(prompt, good) == pytest.approx(7 / 20)
    assert toys.true_reward(prompt, good) == pytest.approx(1 + 1 + 3 / 7 - 7 / 40)
    assert toys.true_reward(prompt, "") == pytest.approx(1.0)


def test_raters_are_intransitive():
    texts = ["the boat .", "the old boat .", "the old red boat ."]
    p = [[toys.intransitive_raters("", a, b) for b in texts] for a in texts]
    assert p[0][1] == p[1][2] == p[2][0] == 0.9
    np.testing.assert_allclose(np.add(p, np.transpose(p)), 1.0, rtol=1e-12)


def test_training_does_not_touch_the_global_random_state():
    before = torch.get_rng_state()
    first, second = toys.untrained(seed=1), toys.untrained(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(ValueError, match="kind: must be 'llama' or 'gpt2'"):
        toys.untrained(cast(Any, "mamba"))

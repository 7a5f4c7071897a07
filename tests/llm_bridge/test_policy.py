"""A real model in the simulator's loop: what it draws, what it scores, and how every direct row trains it."""

import dataclasses
import json
from typing import Any, cast

import numpy as np
import peft
import pytest
import torch
from torch import Tensor

from llm_bridge import EnumerableLM, LMPolicy, Training, loading, rows
from llm_bridge import training as training_module
from llm_bridge.catalogue import Catalogue, TextWorld
from llm_bridge.decoding import decode
from llm_bridge.enhancers import Likeliest
from simbandit import algorithms
from simbandit.draws import Draws
from simbandit.objective import Descent
from simbandit.oracles import BradleyTerry
from simbandit.simulate import Problem, simulate
from simbandit.types import Contexts
from tests.llm_bridge import models

PROMPTS = ["about boat :", "about cow :", "about drum :"]


def contexts_of(world: TextWorld, index: list[int]) -> Contexts:
    instance = world.instance(1, Draws(0, 1))
    pool = instance.evaluation
    return Contexts(index=torch.tensor([index]), ref_log_probs=pool.ref_log_probs[:, : len(index)])


@dataclasses.dataclass(frozen=True)
class Listed:
    """A preference between token sequences, for tests: the longer response wins, more surely the longer it is."""

    catalogue: Catalogue
    feedback: str = "preference"
    n_select: int = 2

    def bind(self, instance: Any) -> "Listed":
        return self

    def prob(self, contexts: Contexts, first: Tensor, second: Tensor) -> Tensor:
        assert contexts.index is not None
        rows = zip(contexts.index[0].tolist(), first[0].tolist(), second[0].tolist(), strict=True)
        margins = [len(self.catalogue.tokens(x, a)) - len(self.catalogue.tokens(x, b)) for x, a, b in rows]
        return torch.tensor([margins]).double().sigmoid()

    def respond(self, contexts: Contexts, actions: Tensor, draws: Any) -> Tensor:
        uniform = draws.uniform("annotator", actions.shape[1])
        return (uniform < self.prob(contexts, actions[..., 0], actions[..., 1])).double()


def length(snapshot: Any) -> Tensor:
    """Mean length of the responses that the policy gives to 60 fixed uniforms."""
    policy = snapshot.policy
    uniforms = np.random.default_rng(9).random(60).tolist()
    drawn = policy.generate([i % len(policy.catalogue.prompts) for i in range(60)], uniforms)
    return torch.tensor([np.mean([len(r) for r in drawn])])


# --------------------------------------------------------------------------------------------------- the same object


@pytest.fixture
def twins() -> tuple[EnumerableLM, LMPolicy]:
    """One GPT-2 with three-token responses, listed and sampled; its prompts have different lengths."""
    model = models.gpt2(4, n_embd=8, n_layer=2, n_head=2, window=8).double()
    prompts = [[0], [1, 2], [2, 0, 1]]
    listed = EnumerableLM(model, prompts, 3)
    policy = LMPolicy.of(model, None, prompts, max_new_tokens=3)
    # no token ends a response here, so that both have all 4^3 of them
    return listed, dataclasses.replace(policy, catalogue=Catalogue(prompts, [10**6]))


def test_a_sampled_lm_draws_and_scores_what_the_enumerated_one_does(twins):
    listed, sampled = twins
    n = 200
    uniforms = torch.from_numpy(np.random.default_rng(0).random((1, n)))
    numbers = torch.arange(n)[None] % 3
    pool = listed.world().instance(1, Draws(0, 1)).pool
    expected = listed.sample(Contexts(index=numbers, pool=pool), uniforms)
    contexts = contexts_of(sampled.world(), [0])
    contexts = Contexts(index=numbers, ref_log_probs=contexts.ref_log_probs.expand(1, n, -1))
    drawn = sampled.sample(contexts, uniforms)
    tokens = [sampled.catalogue.tokens(x, a) for x, a in zip(numbers[0].tolist(), drawn[0].tolist(), strict=True)]
    assert [listed.number(t) for t in tokens] == expected[0].tolist()
    scores = sampled.log_probs(contexts, drawn[..., None])[0, :, 0]
    torch.testing.assert_close(scores, listed.table.detach()[0, numbers[0], expected[0]], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("online_dpo", {}),
        ("inpo", {}),
        ("copo", {"calibration": "reference"}),
        ("copo", {"calibration": "reference", "weighting": "coin_flip"}),
        ("selm", {}),
    ],
)
def test_one_fit_is_the_enumerated_ones(twins, name, changes):
    """The same steps of gradient descent on the same duels move the law to the same place; so they do with copo's
    counts, over numbers of the list here and numbers of the catalogue there, and with selm's likeliest response."""
    listed, sampled = twins
    steps = Descent(6, 0.05, optimiser="sgd")
    sampled = dataclasses.replace(sampled, training=Training(clip=1e9))
    world = listed.world(reward_range=(-1.0, 1.0), rewards=np.random.default_rng(1).uniform(-1, 1, (3, 64)))

    class Same(Listed):
        """The listed world's annotator, asked by tokens."""

        def prob(self, contexts: Contexts, first: Tensor, second: Tensor) -> Tensor:
            pool = world.instance(1, Draws(0, 1)).pool
            assert contexts.index is not None
            bound = BradleyTerry().bind(world.instance(1, Draws(0, 1)))
            ids = [
                [
                    listed.number(self.catalogue.tokens(x, a))
                    for x, a in zip(contexts.index[0].tolist(), acts, strict=True)
                ]
                for acts in (first[0].tolist(), second[0].tolist())
            ]
            both = [torch.tensor([i]) for i in ids]
            return bound.prob(Contexts(index=contexts.index, pool=pool), both[0], both[1])

    algorithm = algorithms.create(name, proximal=0.0, descent=steps, **changes)
    drawn = {"calibration": Likeliest(100)} if name == "selm" else {}
    options: dict[str, Any] = {"rounds": 3, "batch_size": 20, "metrics": ["queries"]}
    one = simulate(Problem(world, BradleyTerry(), 0.5), algorithm, policy=listed, **options).policy
    other = simulate(
        Problem(sampled.world(reward_range=(-1.0, 1.0)), cast(Any, Same(sampled.catalogue)), 0.5),
        cast(Any, rows.direct_row(name, descent=steps, **changes, **drawn)),
        policy=sampled,
        **options,
    ).policy
    assert isinstance(one, EnumerableLM)
    assert isinstance(other, LMPolicy)
    flat = torch.cat([w.flatten() for w in other.weights])
    assert one.parameters is not None
    torch.testing.assert_close(flat[None], one.parameters, rtol=0, atol=1e-9)
    assert (flat[None] - listed.parameters).abs().max() > 1e-3


@pytest.mark.parametrize("training", [{"accumulate": 40}, {"accumulate": 10**6}])
def test_accumulated_gradients_are_the_same_gradients(twins, training):
    _, sampled = twins
    results = []
    for options in ({}, training):
        policy = dataclasses.replace(sampled, training=Training(Descent(3, 0.1, optimiser="sgd"), **options), known={})
        results.append(learn(policy, "online_dpo", rounds=2, batch_size=15).policy.weights)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def learn(policy: LMPolicy, name: str, rounds: int = 2, batch_size: int = 12, **options: Any) -> Any:
    problem = Problem(policy.world(), cast(Any, Listed(policy.catalogue)), 0.3)
    settings: dict[str, Any] = {"metrics": [("length", length)]} | options
    algorithm = algorithms.create(name, proximal=0.0)
    return simulate(problem, algorithm, rounds=rounds, batch_size=batch_size, policy=policy, **settings)


def test_minibatches_are_unbiased(twins):
    """Averaged over many draws, the minibatch gradient (one step of plain descent) is the full one."""
    _, sampled = twins
    moves = []
    for seed, minibatch in [(0, None), *((s, 4) for s in range(40))]:
        training = Training(Descent(1, 1.0, optimiser="sgd"), minibatch=minibatch, clip=1e9, seed=seed)
        fitted = learn(dataclasses.replace(sampled, training=training, known={}), "online_ipo", rounds=1).policy
        moves.append(
            torch.cat([(new - old).flatten() for new, old in zip(fitted.weights, sampled.weights, strict=True)])
        )
    full, parts = moves[0], torch.stack(moves[1:])
    along = parts @ full / full.square().sum()
    assert abs(float(along.mean()) - 1) < 4 * float(along.std()) / 40**0.5
    assert 0.02 < float(along.std()) < 3


# --------------------------------------------------------------------------------------------------- the toy model


def test_an_algorithm_trains_the_toy_model(toy):
    training = Training(Descent(8, 3e-3))
    policy = LMPolicy.from_pretrained(toy, PROMPTS, max_new_tokens=24, training=training)
    assert policy.shown(0) == "<bos> about boat :"
    results = learn(policy, "online_dpo", rounds=2, batch_size=24, metrics=[("length", length)])
    means = results.frame()["value"].to_numpy()
    assert means[-1] > means[0] + 1  # longer responses win
    # the reference is untouched, and is asked nothing twice
    fresh = LMPolicy.from_pretrained(toy, PROMPTS, max_new_tokens=24)
    for pair, value in list(policy.known.items())[:5]:
        fresh.catalogue.restore(policy.catalogue.state())
        contexts = contexts_of(fresh.world(), [pair[0]])
        again = fresh.log_probs(contexts, torch.tensor([[[pair[1]]]]))
        assert float(again) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("name", rows.names())
def test_every_direct_row_trains_an_lm(twins, name):
    _, sampled = twins
    policy = dataclasses.replace(sampled, training=Training(Descent(1, 0.01)))
    problem = Problem(policy.world(), cast(Any, Listed(policy.catalogue)), 0.3)
    algorithm = rows.direct_row(name, **({"passes": 1} if name == "sail_dp" else {}))
    options: dict[str, Any] = {"rounds": 2, "batch_size": 5, "policy": policy, "metrics": ["queries"]}
    results: Any = simulate(problem, cast(Any, algorithm), **options)  # offline rows: duels of the policy
    assert results.policy.fits >= 1
    moved = [(new - old).abs().max() for new, old in zip(results.policy.weights, sampled.weights, strict=True)]
    assert max(moved) > 1e-6


def test_what_is_no_direct_row_says_so():
    with pytest.raises(ValueError, match="gshf_online is model-based"):
        rows.direct_row("gshf_online")
    with pytest.raises(ValueError, match="no algorithm is called"):
        rows.direct_row("inpoo")


@pytest.mark.parametrize("killed_at", [0, 1, 2])
def test_a_killed_run_goes_on_bit_for_bit(twins, tmp_path, monkeypatch, killed_at):
    _, sampled = twins
    training = Training(Descent(4, 0.05), minibatch=6)
    whole = learn(fresh(sampled, training=training), "inpo", rounds=3)
    calls, run = [], training_module.Trainer.run

    def killed(self: Any, *given: Any) -> Tensor:
        calls.append(given)
        if len(calls) == killed_at + 1:
            with torch.no_grad():
                self.policy.body.trainable[0].add_(1.0)  # half a fit
            raise KeyboardInterrupt
        return run(self, *given)

    monkeypatch.setattr(training_module.Trainer, "run", killed)
    policy = fresh(sampled, training=training, checkpoints=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        learn(policy, "inpo", rounds=3)
    resumed = learn(fresh(policy), "inpo", rounds=3)
    assert len(calls) == 4  # three fits, and the half one
    for one, other in zip(resumed.policy.weights, whole.policy.weights, strict=True):
        assert torch.equal(one, other)
    assert resumed.frame().equals(whole.frame())
    with pytest.raises(ValueError, match="is of another run"):
        learn(fresh(policy), "inpo", rounds=3, seed=1)


def fresh(policy: LMPolicy, **changes: Any) -> LMPolicy:
    """As in a new process: nothing known, an empty catalogue."""
    catalogue = Catalogue(policy.catalogue.prompts, policy.catalogue.end)
    return dataclasses.replace(policy, catalogue=catalogue, known={}, **changes)


def test_draws_do_not_depend_on_the_batch(toy):
    policy = LMPolicy.from_pretrained(toy, PROMPTS, max_new_tokens=24)
    uniforms = np.random.default_rng(0).random(40).tolist()
    prompts = [i % 3 for i in range(40)]
    together = policy.generate(prompts, uniforms)
    alone = [policy.generate([x], [u])[0] for x, u in zip(prompts, uniforms, strict=True)]
    assert together == alone
    cut = dataclasses.replace(policy, token_budget=40).generate(prompts, uniforms)
    assert together == cut
    assert any(len(r) > 12 for r in together)  # beyond the bits of the first uniform
    assert all(r[-1:] == (2,) for r in together if len(r) < 24)


def test_temperature_and_nucleus(toy):
    policy = LMPolicy.from_pretrained(toy, PROMPTS, max_new_tokens=12)
    uniforms = np.random.default_rng(0).random(30).tolist()
    cold = policy.generate([0] * 30, uniforms, temperature=1e-4)
    assert len(set(cold)) == 1
    assert len(set(policy.generate([0] * 30, uniforms, top_p=1e-9))) == 1
    assert set(policy.generate([0] * 30, uniforms, top_p=1e-9)) == set(cold)
    assert len(set(policy.generate([0] * 30, uniforms))) > 20


def test_the_frequencies_of_draws_are_the_law(twins):
    """Long responses too, whose later tokens come from the keyed stream: the pair of last tokens is compared."""
    model = twins[1].model
    n, steps = 3000, 40
    uniforms = np.random.default_rng(4).random(n).tolist()
    wide = models.gpt2(4, n_embd=8, n_layer=1, n_head=2, window=64).double()
    drawn = decode(wide, [[0]] * n, uniforms, max_new_tokens=steps, end=[10**6])
    last = np.array([r[-2:] for r in drawn])
    with torch.no_grad():
        logits = wide(input_ids=torch.tensor([[0, *r[:-1]] for r in drawn]), use_cache=False).logits[:, -1]
    expected = logits.softmax(-1).mean(0).numpy()  # given what was drawn before
    seen = np.bincount(last[:, 1], minlength=4) / n
    np.testing.assert_allclose(seen, expected, atol=4 * np.sqrt(0.25 / n))
    assert model is twins[1].model


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it
def test_lora_trains_the_adapter_alone(toy, tmp_path):
    policy = LMPolicy.from_pretrained(toy, PROMPTS, lora=2, max_new_tokens=8, training=Training(Descent(3, 1e-2)))
    base = LMPolicy.from_pretrained(toy, PROMPTS, max_new_tokens=8)
    uniforms = np.random.default_rng(0).random(20).tolist()
    assert policy.generate([0] * 20, uniforms) == base.generate([0] * 20, uniforms)
    assert sum(w.numel() for w in policy.weights) < 0.3 * sum(w.numel() for w in base.weights)
    trained = learn(policy, "inpo", rounds=2).policy
    trained.save(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("*.bin"))
    again = LMPolicy.from_pretrained(toy, PROMPTS, adapter=tmp_path / "adapter", max_new_tokens=8)
    contexts, actions = contexts_of(trained.world(), [0, 1]), torch.zeros(1, 2, 1, dtype=torch.int64)
    torch.testing.assert_close(
        again.log_probs(contexts, actions), trained.log_probs(contexts, actions), rtol=0, atol=1e-4
    )
    with pytest.raises(ValueError, match=r"adapter: .* was trained on .*toy.*and the base here is 'elsewhere'"):
        loading.load_adapter(again.model, tmp_path / "adapter", "elsewhere")


def test_saved_and_loaded(toy, tmp_path):
    policy = LMPolicy.from_pretrained(toy, PROMPTS, max_new_tokens=8)
    policy.save(tmp_path)
    again = LMPolicy.from_pretrained(tmp_path, PROMPTS, max_new_tokens=8)
    assert loading.fingerprint(again.model) == loading.fingerprint(policy.model)
    contexts, actions = contexts_of(policy.world(), [0, 1]), torch.zeros(1, 2, 1, dtype=torch.int64)
    assert torch.equal(again.log_probs(contexts, actions), policy.log_probs(contexts, actions))
    with torch.no_grad():
        again.model.get_input_embeddings().weight[3, 3] += 1e-6
    assert loading.fingerprint(again.model) != loading.fingerprint(policy.model)


# ------------------------------------------------------------------------------------------------------------ refused


def test_unsafe_weights_and_remote_code_are_refused(toy, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model.bin, a pickle, which can run any code"):
        LMPolicy.from_pretrained(tmp_path, PROMPTS)
    described = json.loads((toy / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="a pickle, which can run any code"):
        loading.load_adapter(models.gpt2(), tmp_path, toy)
    (tmp_path / "pytorch_model.bin").unlink()
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="asks to run code that came with the model"):
        LMPolicy.from_pretrained(tmp_path, PROMPTS)


def test_what_an_lm_cannot_do_is_said(twins):
    _, sampled = twins
    contexts = contexts_of(sampled.world(), [0])
    with pytest.raises(TypeError, match="cannot list its responses"):
        sampled.log_probs(contexts)
    with pytest.raises(ValueError, match="one at a time"):
        learn(sampled, "inpo", replicates=2)
    with pytest.raises(TypeError, match="this policy is frozen"):
        learn(sampled.freeze(), "inpo")
    with pytest.raises(LookupError, match=r"prompt 0 has responses 0 to \d+, asked for 99"):
        sampled.log_probs(contexts, torch.tensor([[[99]]]))
    with pytest.raises(ValueError, match=r"max_new_tokens: .*exceed the context window of 8"):
        dataclasses.replace(sampled, max_new_tokens=9).generate([0], [0.5])
    for wrong, message in (({"temperature": 0.0}, "temperature"), ({"top_p": 1.5}, "top_p")):
        with pytest.raises(ValueError, match=f"{message}: must"):
            sampled.generate([0], [0.5], **wrong)
    with pytest.raises(ValueError, match="encoder-decoder"):
        decode(models.t5(), [[1]], [0.5], max_new_tokens=2, end=[0])


def test_memory_that_runs_out_halves_a_batch_of_draws(twins, monkeypatch):
    _, sampled = twins
    uniforms = np.random.default_rng(0).random(20).tolist()
    expected, body, sizes = sampled.generate([1] * 20, uniforms), sampled.model.transformer.forward, []

    def forward(**given: Any) -> Any:
        sizes.append(len(given["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(**given)

    monkeypatch.setattr(sampled.model.transformer, "forward", forward)
    assert sampled.generate([1] * 20, uniforms) == expected
    assert max(sizes) > 3
    whole = (_ for _ in ()).throw
    monkeypatch.setattr(sampled.model.transformer, "forward", lambda **_: whole(torch.OutOfMemoryError("no")))
    with pytest.raises(MemoryError, match="single sequence of 5 tokens"):
        sampled.generate([0, 1], [0.5, 0.5])


def test_nan_logits_while_drawing_name_the_row_and_the_weights():
    model = models.llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[4] = torch.nan
    with pytest.raises(ValueError, match=r"NaN logits in row 2, token 0 .*'model.embed_tokens.weight' are not finite"):
        decode(model, [[1], [2], [3, 4]], [0.5] * 3, max_new_tokens=2, end=[0])


def test_an_end_token_beyond_the_vocabulary_ends_nothing():
    model = models.llama()
    model.generation_config.eos_token_id = [0, 10**6]
    assert loading.end_tokens(model, None) == [0]
    model.generation_config.eos_token_id = 10**6
    with pytest.raises(ValueError, match="name no end-of-sequence id below the vocabulary"):
        LMPolicy.of(model, None, [[1]])


def test_a_tokenizer_of_another_model_is_refused(toy):
    tokenizer = loading.load_tokenizer(toy)
    with pytest.raises(ValueError, match="tokenizer: writes 212 ids and the model reads 61"):
        LMPolicy.of(models.gpt2(), tokenizer, PROMPTS)
    with pytest.raises(ValueError, match="must all be texts"):
        LMPolicy.of(loading.load_model(toy), tokenizer, cast(Any, ["about boat :", [1, 2]]))


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        (
            [[1], [2] * 120],
            32,
            r"prompts: row 1 has 120 tokens, which with 32 new ones exceed the context .* 128",
        ),
        ([[1], [99]], 3, "prompts: row 1 holds id 99; the model reads ids 0 to 60"),
        ([[1]], 0, "max_new_tokens: must be at least 1, got 0"),
        ([[]], 3, "none may be empty"),
    ],
)
def test_prompts_are_checked_at_the_start(prompts, new, message):
    with pytest.raises(ValueError, match=message):
        LMPolicy.of(models.gpt2(), None, prompts, max_new_tokens=new)


def test_a_policy_prints_without_its_weights():
    assert len(repr(LMPolicy.of(models.gpt2(), None, [[1]]))) < 600
    with pytest.raises(ValueError, match="path_or_id: /nowhere/model is no folder, and no hub id"):
        loading.load_model("/nowhere/model")


def test_the_catalogue_counts_per_prompt():
    catalogue = Catalogue([[5], [6, 7]], [0, 3], capacity=3)
    assert [catalogue.intern(1, r) for r in ([4, 0], [4], [4, 0])] == [1, 2, 1]
    assert catalogue.tokens(1, 0) == (0,)
    assert [catalogue.truncated(1, a) for a in (0, 1, 2)] == [False, False, True]
    with pytest.raises(ValueError, match="capacity: prompt 1 already has 3"):
        catalogue.intern(1, [9])
    with pytest.raises(ValueError, match="is empty"):
        catalogue.intern(0, [])
    again = Catalogue([[5], [6, 7]], [0, 3])
    again.restore(json.loads(json.dumps(catalogue.state())))
    assert again.intern(1, [4]) == 2
    with pytest.raises(ValueError, match="has none, so its responses have no text"):
        catalogue.text(0, 0)
    with pytest.raises(ValueError, match="name no end-of-sequence"):
        Catalogue([[5]], [])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it
def test_the_peft_adapter_is_what_lora_means(toy):
    config = peft.LoraConfig(r=1, target_modules=["q_proj"])
    policy = LMPolicy.from_pretrained(toy, PROMPTS, lora=config)
    assert all(w.numel() == 48 for w in policy.weights)

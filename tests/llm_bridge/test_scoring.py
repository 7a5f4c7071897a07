"""Batched scoring equals one by one, whatever the batch; the layouts that are wrong by nats; what is refused."""

from typing import Any, cast

import numpy as np
import peft
import pytest
import torch
import transformers

from llm_bridge import batches, loading, scoring, sequence_log_probs, token_log_probs
from llm_bridge import models as parts
from tests.llm_bridge import models

LAYOUTS = ["auto", "joint", "shared"]


@pytest.mark.parametrize("distinct_prompts", [1, 4, 30])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batched_is_one_by_one_in_float64(layout, distinct_prompts):
    model = models.gpt2().double()
    prompts, responses = models.pairs(30, distinct_prompts)
    expected = models.one_by_one(model, prompts, responses)
    order = np.random.default_rng(2).permutation(len(prompts))
    for budget in (1, 200, 10**6):
        scored = sequence_log_probs(
            model, [prompts[i] for i in order], [responses[i] for i in order], layout=layout, token_budget=budget
        )
        torch.testing.assert_close(scored, expected[order], rtol=0, atol=1e-10)


FAMILIES = [models.gpt2, models.llama, models.qwen2, models.mistral, models.gemma, models.gemma2, models.t5]


@pytest.mark.parametrize("make", FAMILIES)
def test_batched_is_one_by_one_on_every_architecture(make):
    model = make()
    for distinct_prompts in (3, 21):
        prompts, responses = models.pairs(21, distinct_prompts, longest=64)
        expected = models.one_by_one(model, prompts, responses)
        for layout in ("auto", "joint"):
            scored = sequence_log_probs(model, prompts, responses, layout=layout, token_budget=500)
            torch.testing.assert_close(scored, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("make", [models.gpt2, models.llama, models.qwen2])
def test_shared_prompts_in_float32(make):
    model = make()
    prompts, responses = models.pairs(21, 4, longest=64)
    scored = sequence_log_probs(model, prompts, responses, layout="shared")
    torch.testing.assert_close(scored, models.one_by_one(model, prompts, responses), rtol=0, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_add_up_and_stand_in_order(layout):
    model = models.gpt2().double()
    prompts, responses = models.pairs(13, 5)
    tokens = token_log_probs(model, prompts, responses, layout=layout, token_budget=150)
    assert [len(t) for t in tokens] == [len(r) for r in responses]
    # the first k tokens of a response are a response of their own
    heads = sequence_log_probs(model, prompts, [r[: (len(r) + 1) // 2] for r in responses])
    cut = torch.stack([t[: (len(t) + 1) // 2].sum() for t in tokens])
    torch.testing.assert_close(cut, heads, rtol=0, atol=1e-10)


def test_left_padding_and_packing_with_a_cache_are_wrong_by_nats():
    """The two traps, on this very model: had the scorer fallen into one, the tests above would fail by nats."""
    model = models.gpt2()
    prompts, responses = models.pairs(6, 6, seed=5)
    expected = models.one_by_one(model, prompts, responses)
    rows = [p + r for p, r in zip(prompts, responses, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    packed = torch.tensor([rows[0] + rows[1]])
    positions = torch.cat([torch.arange(len(row)) for row in rows[:2]])[None]

    def read(logits, row, end):
        n = len(responses[row])
        told = logits[end - n - 1 : end - 1].log_softmax(-1)
        return told.gather(1, torch.tensor(responses[row])[:, None]).sum()

    with torch.no_grad():
        left = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        wrong = model(input_ids=packed, position_ids=positions, use_cache=True).logits[0]
        right = model(input_ids=packed, position_ids=positions, use_cache=False).logits[0]
    assert max(float((read(left[i], i, longest) - expected[i]).abs()) for i in range(6)) > 1.0
    assert abs(float(read(wrong, 1, packed.shape[1]) - expected[1])) > 1.0
    assert abs(float(read(right, 1, packed.shape[1]) - expected[1])) < 1e-3


@pytest.mark.parametrize("layout", ["joint", "shared"])
def test_gradients_are_those_of_the_plain_definition(layout, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 4 * models.VOCABULARY * 7)  # several recomputed chunks of logits
    model = models.gpt2().double()
    prompts, responses = models.pairs(9, 3, longest=12)
    weights = torch.from_numpy(np.random.default_rng(0).normal(size=len(prompts)))
    (
        weights * sequence_log_probs(model, prompts, responses, layout=layout, gradients=True, token_budget=60)
    ).sum().backward()
    mine = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for w, prompt, response in zip(weights, prompts, responses, strict=True):
        logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        (w * logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-8, atol=1e-10)
    assert not sequence_log_probs(model, prompts, responses).requires_grad


def test_dropout_is_off_and_the_mode_is_restored():
    model = models.gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    prompts, responses = models.pairs(5, 2)
    one, other = (sequence_log_probs(model, prompts, responses) for _ in range(2))
    assert torch.equal(one, other)
    assert model.training


def test_no_tensor_of_tokens_times_vocabulary(monkeypatch):
    """The head sees response positions only, each distinct pair once, in chunks."""
    model = models.llama()
    prompts, responses = models.pairs(24, 3)
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    sequence_log_probs(model, prompts, responses)  # the first call also checks the head
    seen.clear()
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 4 * models.VOCABULARY * 10)
    sequence_log_probs(model, prompts * 2, responses * 2)
    handle.remove()
    assert max(shape[0] for shape in seen) <= 10
    widths = sum(shape[0] for shape in seen)
    tokens = sum(map(len, responses[:-1]))
    assert tokens <= widths <= tokens + 40  # and one row a batch, to learn the width


def test_a_prompt_is_encoded_once(monkeypatch):
    model = models.llama()
    prompts, responses = models.pairs(24, 3)
    sequence_log_probs(model, prompts, responses)
    read = []
    handle = model.model.embed_tokens.register_forward_hook(lambda module, given, out: read.append(given[0].numel()))
    sequence_log_probs(model, prompts, responses)
    shared = sum(read)
    read.clear()
    sequence_log_probs(model, prompts, responses, layout="joint")
    handle.remove()
    assert shared < 1.5 * (sum(map(len, responses)) + sum({len(p) for p in prompts}))
    assert sum(read) > sum(map(len, responses)) + sum(map(len, prompts)) - len(prompts)


def test_memory_that_runs_out_halves_the_batch(monkeypatch):
    model = models.gpt2().double()
    prompts, responses = models.pairs(20, 20)
    expected, body, sizes = sequence_log_probs(model, prompts, responses), model.transformer.forward, []

    def forward(**given):
        sizes.append(given["input_ids"].shape[0])
        if given["input_ids"].shape[0] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return body(**given)

    monkeypatch.setattr(model.transformer, "forward", forward)
    torch.testing.assert_close(
        sequence_log_probs(model, prompts, responses, token_budget=10**6), expected, rtol=0, atol=1e-10
    )
    assert max(sizes) > 3
    monkeypatch.setattr(
        model.transformer, "forward", lambda **given: (_ for _ in ()).throw(torch.OutOfMemoryError("no"))
    )
    with pytest.raises(MemoryError, match=r"single sequence of \d+ tokens"):
        sequence_log_probs(model, prompts, responses)


def test_a_size_that_failed_is_not_tried_again(monkeypatch):
    """Sixteen pairs of one length, two to a batch: after one batch has failed, the others come in halves at once."""
    model = models.gpt2().double()
    prompts, responses = [[i, 1] for i in range(16)], [[i, 2, 3] for i in range(16)]
    expected, body, sizes = sequence_log_probs(model, prompts, responses), model.transformer.forward, []

    def forward(**given):
        sizes.append(len(given["input_ids"]))
        if sizes[-1] > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return body(**given)

    monkeypatch.setattr(model.transformer, "forward", forward)
    scored = sequence_log_probs(model, prompts, responses, token_budget=8)
    torch.testing.assert_close(scored, expected, rtol=0, atol=1e-10)
    assert sizes == [2] + 16 * [1]


def test_a_compiled_body_gives_the_same(monkeypatch):
    monkeypatch.setattr(parts, "COMPILE", {"dynamic": True, "backend": "eager"})  # traced, and run as it is
    prompts, responses = models.pairs(9, 3, longest=12)
    for model in (models.llama(), models.t5()):
        expected = sequence_log_probs(model, prompts, responses)
        scored = sequence_log_probs(model, prompts, responses, compiled=True)
        torch.testing.assert_close(scored, expected, rtol=0, atol=1e-4)
        body = model.get_decoder() if model.config.is_encoder_decoder else model.base_model
        assert body._compiled_call_impl is not None


def test_quantised_weights_score_as_the_model_says(tmp_path):
    """A reference in eight bits (bitsandbytes): its own logits, one by one."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    models.llama().save_pretrained(tmp_path)
    settings = transformers.BitsAndBytesConfig(load_in_8bit=True)
    model = loading.load_model(tmp_path, quantization_config=settings, device_map="cpu")
    assert any(p.dtype == torch.int8 for p in model.parameters())
    prompts, responses = models.pairs(9, 3, longest=12)
    scored = sequence_log_probs(model, prompts, responses)
    own, whole = models.one_by_one(model, prompts, responses), models.one_by_one(models.llama(), prompts, responses)
    assert scored.dtype == torch.float32
    # activations are quantised row by row of a batch, so rounding differs; the weights' own error is larger
    assert (scored - own.float()).abs().max() < 0.05 * own.abs().max()
    assert (scored - whole).abs().max() < 0.3 * whole.abs().max()


def test_bfloat16_is_near_float32():
    model = models.llama()
    prompts, responses = models.pairs(6, 3, longest=10)
    exact = sequence_log_probs(model, prompts, responses)
    mixed = sequence_log_probs(model, prompts, responses, autocast=torch.bfloat16)
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it
def test_an_adapter_disabled_is_the_reference():
    model = models.gpt2().double()
    prompts, responses = models.pairs(8, 3)
    before = sequence_log_probs(model, prompts, responses)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    with torch.no_grad():
        for name, p in tuned.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    assert (sequence_log_probs(tuned, prompts, responses) - before).abs().min() > 1e-3
    with tuned.disable_adapter():
        torch.testing.assert_close(sequence_log_probs(tuned, prompts, responses), before, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([[1], [2]], [[3]], "responses: must be one per prompt, got 1 for 2"),
        ([[1], [2]], [[3], []], "responses: row 1 is empty"),
        ([[1], []], [[3], [4]], "prompts: row 1 is empty.*begin-of-sequence"),
        ([[1], [2]], [[3], [61]], "responses: row 1 holds id 61; the model reads ids 0 to 60"),
        ([[1], [-1]], [[3], [4]], "prompts: row 1 holds id -1"),
        (
            [[1] * 100],
            [[3] * 30],
            "prompts: row 0 has 100 tokens and its response 30, beyond the context window of 128",
        ),
    ],
)
def test_bad_pairs_are_named(prompts, responses, message):
    with pytest.raises(ValueError, match=message):
        sequence_log_probs(models.gpt2(), prompts, responses)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["ab"], r"prompts: row 0 must be a sequence of token ids \(integers\), got 'ab'"),
        ([[1.5]], "prompts: row 0 must be"),
        ([[[1]]], "prompts: row 0 must be"),
    ],
)
def test_what_is_not_token_ids_is_named(prompts, message):
    with pytest.raises(TypeError, match=message):
        sequence_log_probs(models.gpt2(), prompts, [[2]])
    with pytest.raises(TypeError, match=r"autocast: must be a dtype such as torch\.bfloat16, got 'bf16'"):
        sequence_log_probs(models.gpt2(), [[1]], [[2]], autocast=cast(Any, "bf16"))


def test_the_longest_pair_that_fits_is_scored():
    model = models.gpt2()
    assert torch.isfinite(sequence_log_probs(model, [[1] * 100], [[3] * 29])).all()  # the last token is never read


def test_nan_names_the_row_and_the_weights():
    model = models.gpt2()
    prompts, responses = [[1], [2], [3, 4]], [[5, 6], [7, 8], [9, 10]]
    with torch.no_grad():
        model.transformer.wte.weight[9] = torch.nan  # tied to the head: every logit row holds a NaN
    with pytest.raises(ValueError, match=r"NaN log-probability in row 0 .*'transformer.wte.weight' are not finite"):
        sequence_log_probs(model, prompts, responses)
    model = models.llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[4] = torch.nan
    with pytest.raises(ValueError, match=r"row 2 \(2 tokens in all\); the weights of 'model.embed_tokens.weight'"):
        sequence_log_probs(model, prompts, responses)


def test_arguments_are_checked():
    model, unknown = models.mistral(), cast(Any, "packed")
    with pytest.raises(ValueError, match="layout: must be 'auto'"):
        sequence_log_probs(model, [[1]], [[2]], layout=unknown)
    with pytest.raises(ValueError, match="layout: 'shared' needs full attention"):
        sequence_log_probs(model, [[1]], [[2]], layout="shared")
    with pytest.raises(ValueError, match="token_budget: must be at least 1"):
        sequence_log_probs(model, [[1]], [[2]], token_budget=0)
    with pytest.raises(ValueError, match="no language-model head"):
        sequence_log_probs(transformers.GPT2Model(models.gpt2().config), [[1]], [[2]])
    assert sequence_log_probs(model, [], []).shape == (0,)


def test_a_pad_id_beyond_the_vocabulary_is_never_used():
    model = models.llama()
    prompts, responses = models.pairs(6, 6)
    expected = models.one_by_one(model, prompts, responses)
    model.config.pad_token_id = 10**6
    torch.testing.assert_close(sequence_log_probs(model, prompts, responses), expected, rtol=0, atol=1e-3)


def test_what_an_architecture_does_to_its_logits_must_be_known():
    class Shifted(transformers.GPT2LMHeadModel):
        def forward(self, *given, **named):
            out = super().forward(*given, **named)
            out["logits"] = 3.0 * out["logits"]
            return out

    with pytest.raises(ValueError, match="does more to its logits"):
        sequence_log_probs(models.randomised(Shifted(models.gpt2().config)), [[1]], [[2]])


def test_buckets_hold_everyone_once_and_keep_the_budget():
    lengths = np.random.default_rng(3).integers(1, 50, size=77).tolist()
    cut = batches.buckets(lengths, 100)
    assert sorted(i for part in cut for i in part) == list(range(77))
    assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part) <= 100 for part in cut)
    assert all(max(lengths[i] for i in part) <= 1.25 * min(lengths[i] for i in part) + 4 for part in cut)

"""Tiny random language models of several architectures, made from a seed without touching the global random state."""

from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

VOCABULARY = 61


def randomised(model: Any, seed: int = 0, scale: float = 0.3) -> Any:
    """Every weight N(0, scale^2) (norms around 1), large enough that attention is far from uniform."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.from_numpy(rng.normal(size=tuple(p.shape))).to(p.dtype)
            p.copy_((1.0 if "norm" in name or "ln_" in name else 0.0) * ("bias" not in name) + scale * noise)
    return model.eval()


def gpt2(vocabulary: int = VOCABULARY, window: int = 128, **config: Any) -> Any:
    settings: dict[str, Any] = {"n_embd": 24, "n_layer": 2, "n_head": 3} | config
    made = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=window, bos_token_id=0, eos_token_id=0, pad_token_id=None, **settings
    )
    return randomised(transformers.GPT2LMHeadModel(made))


def _llama_like(prefix: str, **config: Any) -> Any:
    made = getattr(transformers, f"{prefix}Config")(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
        **config,
    )
    return randomised(getattr(transformers, f"{prefix}ForCausalLM")(made))


def llama() -> Any:
    return _llama_like("Llama")


def qwen2() -> Any:
    return _llama_like("Qwen2")


def mistral() -> Any:
    return _llama_like("Mistral", sliding_window=8)


def gemma() -> Any:
    return _llama_like("Gemma", head_dim=8)


def gemma2() -> Any:
    return _llama_like("Gemma2", sliding_window=8, head_dim=8, final_logit_softcapping=2.0)


def t5() -> Any:
    made = transformers.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    made.decoder_start_token_id = 0
    return randomised(transformers.T5ForConditionalGeneration(made))


def one_by_one(model: Any, prompts: Any, responses: Any) -> Tensor:
    """The plain definition: the model's own logits on one unpadded pair at a time."""
    sums = []
    for prompt, response in zip(prompts, responses, strict=True):
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                decoder = torch.tensor([[model.config.decoder_start_token_id, *response[:-1]]])
                logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0]
            else:
                logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits
                logits = logits[0, len(prompt) - 1 : -1]
        sums.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())
    return torch.stack(sums)


def pairs(n: int, distinct_prompts: int, seed: int = 1, longest: int = 40) -> tuple[list[list[int]], list[list[int]]]:
    """n pairs of random lengths, in no order; the first prompt is a single token, and one pair stands twice."""
    rng = np.random.default_rng(seed)

    def drawn(length: int) -> list[int]:
        return rng.integers(0, VOCABULARY, size=length).tolist()

    pool = [drawn(1), *(drawn(int(rng.integers(2, 30))) for _ in range(distinct_prompts - 1))]
    prompts = [pool[i] for i in rng.permutation(np.arange(n) % distinct_prompts)]
    responses = [drawn(int(rng.integers(1, longest))) for _ in range(n)]
    return [*prompts, prompts[0]], [*responses, responses[0]]

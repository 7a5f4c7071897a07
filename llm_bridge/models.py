"""What the rest must know of a language model: its parts, its limits, and how it is run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Layout = Literal["auto", "joint", "shared"]
CACHED = 1024  # tokens of a batch whose activations stay in a CPU's cache: a tenth faster than 4096 at width 256
COMPILE: dict[str, Any] = {"dynamic": True}  # options of torch.compile


@dataclass(frozen=True)
class Run:
    """How a model is run. token_budget: tokens of a padded batch, None for `budget_of`; autocast: a dtype to compute
    in, such as bfloat16; compiled: the model's body by torch.compile."""

    token_budget: int | None = None
    layout: Layout = "auto"
    autocast: torch.dtype | None = None
    gradients: bool = False
    progress: bool = False
    compiled: bool = False


def budget_of(model: Any, gradients: bool = False) -> int:
    """Tokens of a batch: what a CPU's cache holds; on a GPU half of the free memory, by a rough count of activations
    (16 hidden states a token, 34 a layer where gradients keep them). Too many are halved when memory runs out."""
    device, inner = device_of(model), unwrapped(model)
    if device.type != "cuda":
        return CACHED
    config = inner.config.get_text_config()
    layers = 34 * config.num_hidden_layers if gradients else 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(min(max(free // 2 // (4 * config.hidden_size * (16 + layers)), CACHED), 2**17))


def unwrapped(model: Any) -> Any:
    """The transformers model inside adapters of peft (which stay in force)."""
    if not hasattr(model, "peft_config"):
        return model
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in model.peft_config.values()):
        raise ValueError("model: prompt-learning adapters add tokens to the prompt; use LoRA or another weight adapter")
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def device_of(model: Any) -> torch.device:
    return unwrapped(model).get_input_embeddings().weight.device


def vocabulary_of(model: Any) -> int:
    """Rows of the input embedding: the ids that the model can read."""
    return unwrapped(model).get_input_embeddings().weight.shape[0]


def slides(inner: Any) -> bool:
    """Whether some layer looks at a window only. Windows count slots, so padding within a row would shift them."""
    config = inner.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds != {"full_attention"} or (
        getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    )


def compiled(inner: Any) -> None:
    """Compiles the body in place, once; it stays so."""
    bodies = [inner.get_encoder(), inner.get_decoder()] if inner.config.is_encoder_decoder else [inner.base_model]
    for body in bodies:
        if body._compiled_call_impl is None:
            body.compile(**COMPILE)


def recomputes(inner: Any) -> bool:
    """Whether gradient checkpointing is on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in inner.modules())


@contextmanager
def evaluating(inner: Any, run: Run):
    """Without dropout; with gradients only if asked for."""
    was_training = inner.training
    if not (run.gradients and recomputes(inner)):
        inner.eval()
    amp: AbstractContextManager = nullcontext()
    if run.autocast is not None:
        amp = torch.autocast(device_of(inner).type, dtype=run.autocast)
    try:
        with torch.set_grad_enabled(run.gradients), amp:
            yield
    finally:
        inner.train(was_training)


_checked: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def head_of(model: Any) -> Callable[[Tensor], Tensor]:
    """Hidden states (N, d) -> logits (N, V), with what the architecture does around its output matrix.

    Checked once per model against the model's own forward pass; ValueError where they differ.
    """
    inner = unwrapped(model)
    config, matrix = inner.config.get_text_config(), inner.get_output_embeddings()
    if matrix is None:
        raise ValueError(f"model: {type(inner).__name__} has no language-model head; load it as a causal or seq2seq LM")
    cap, scale = getattr(config, "final_logit_softcapping", None), getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    before = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0

    def head(states: Tensor) -> Tensor:
        logits = matrix(states * before if before != 1.0 else states)
        logits = logits * scale if scale is not None else logits
        logits = logits / divisor if divisor is not None else logits
        return torch.tanh(logits / cap) * cap if cap is not None else logits

    if inner not in _checked:
        ids = torch.tensor([[0, vocabulary_of(inner) - 1]], device=device_of(inner))
        with torch.no_grad(), evaluating(inner, Run()):
            if config.is_encoder_decoder:
                read = inner.get_encoder()(input_ids=ids).last_hidden_state
                body = inner.get_decoder()(input_ids=ids, encoder_hidden_states=read, use_cache=False)
                full = inner(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
            else:
                body = inner.base_model(input_ids=ids, use_cache=False)
                full = inner(input_ids=ids, use_cache=False).logits
            mine = head(body.last_hidden_state)
        if not torch.allclose(mine, full, rtol=1e-2, atol=1e-2 * float(full.abs().nan_to_num().max()), equal_nan=True):
            raise ValueError(f"model: {type(inner).__name__} does more to its logits than this scorer knows")
        _checked.add(inner)
    return head


def broken_weights(model: Any) -> str:
    """Where a NaN comes from, as far as the weights tell."""
    for name, parameter in unwrapped(model).named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            return f"the weights of {name!r} are not finite"
    return "all weights are finite, so it arises in the computation (try float32)"

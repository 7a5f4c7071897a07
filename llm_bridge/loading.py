"""Getting models in and out: safetensors only, no remote code, tokenizer and model that agree, prompts as token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from llm_bridge.models import unwrapped, vocabulary_of

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def load_model(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str = "cpu",
    seq2seq: bool = False,
    **options: Any,
) -> Any:
    """A transformers model from a folder or a hub id. options go to `from_pretrained` (quantization_config, ...).

    Raises ValueError, with the reason, for weights that are pickles and for models that bring their own code.
    """
    refuse_unsafe(path_or_id)
    kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    logging.disable_progress_bar()
    model: Any = kind.from_pretrained(
        str(path_or_id), dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
    )
    return model if "device_map" in options else model.to(device)


def load_tokenizer(path_or_id: str | Path) -> Any:
    return AutoTokenizer.from_pretrained(str(path_or_id), trust_remote_code=False)


def load_adapter(model: Any, adapter: str | Path, base: str | Path) -> Any:
    """A peft adapter on its base. Raises ValueError for an adapter of another base, or one that is a pickle."""
    from peft import PeftModel

    folder = Path(adapter)
    refuse_unsafe(folder)
    described = json.loads((folder / "adapter_config.json").read_text())
    named = described.get("base_model_name_or_path")
    if named is not None and str(named) != str(base):
        raise ValueError(f"adapter: {folder} was trained on {named!r}, and the base here is {str(base)!r}")
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True)


def refuse_unsafe(path_or_id: str | Path) -> None:
    folder = Path(path_or_id)
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 2 or str(path_or_id).startswith("."):
            raise ValueError(f"path_or_id: {folder} is no folder, and no hub id (NAME or OWNER/NAME)")
        return
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles and not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"path_or_id: {folder} holds its weights as {pickles[0]}, a pickle, which can run any code when it is "
            "opened; convert it to safetensors where you trust it, then load that"
        )
    for name in ("config.json", "tokenizer_config.json"):
        file = folder / name
        if file.is_file() and "auto_map" in json.loads(file.read_text()):
            raise ValueError(f"path_or_id: {file} asks to run code that came with the model; this is never done here")


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a response: the generation config's, else the tokenizer's. Ids beyond the vocabulary are left
    out."""
    named = getattr(getattr(unwrapped(model), "generation_config", None), "eos_token_id", None)
    named = tokenizer.eos_token_id if named is None and tokenizer is not None else named
    ids = [] if named is None else ([named] if isinstance(named, int) else list(named))
    return [i for i in ids if 0 <= i < vocabulary_of(model)]


def agree(model: Any, tokenizer: Any) -> None:
    """Raises ValueError where the tokenizer writes ids that the model cannot read."""
    size = vocabulary_of(model)
    if len(tokenizer) > size:
        raise ValueError(
            f"tokenizer: writes {len(tokenizer)} ids and the model reads {size}: they do not belong together"
        )


def room(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises ValueError for a prompt with ids that the model cannot read, or that leaves no room for a response."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {max_new_tokens}")
    size, window = vocabulary_of(model), getattr(unwrapped(model).config, "max_position_embeddings", None)
    for i, prompt in enumerate(prompts):
        wrong = [t for t in prompt if not 0 <= t < size]
        if wrong:
            raise ValueError(f"prompts: row {i} holds id {wrong[0]}; the model reads ids 0 to {size - 1}")
        if window is not None and len(prompt) + max_new_tokens - 1 > window:
            raise ValueError(
                f"prompts: row {i} has {len(prompt)} tokens, which with {max_new_tokens} new ones exceed the context "
                f"window of {window}; shorten it or lower max_new_tokens (nothing is truncated here)"
            )


def encode_prompts(tokenizer: Any, prompts: Sequence[str], *, chat: bool) -> list[list[int]]:
    """Token ids of prompts as the model shall read them: through the tokenizer's chat template as one user turn with
    the answer's opening, or as plain text after the begin-of-sequence token (where there is one).

    Raises ValueError where a chat is asked for and the tokenizer has no template.
    """
    if chat and not tokenizer.chat_template:
        raise ValueError("chat: this tokenizer has no chat template; pass chat=False")
    rows = []
    for prompt in prompts:
        if chat:
            turns = [{"role": "user", "content": prompt}]
            shown = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            rows.append(tokenizer(shown, add_special_tokens=False)["input_ids"])
            continue
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        start = tokenizer.bos_token_id
        rows.append(ids if start is None else [start, *ids])
    return rows


def boundary_holds(tokenizer: Any, prompt: Sequence[int], response: Sequence[int]) -> bool:
    """Whether the joint text, tokenised again, has the same tokens: then the boundary cuts no token in two."""
    text = tokenizer.decode([*prompt, *response], skip_special_tokens=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"] == [*prompt, *response]


def fingerprint(model: Any) -> str:
    """sha256 of the architecture and all weights, 16 hexadecimal digits: another one means another model."""
    inner = unwrapped(model)
    described = {k: v for k, v in inner.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

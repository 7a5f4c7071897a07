"""The same algorithm objects on language models: exact where all responses are listed, then pools, then real weights.

Needs the extra `llm` (pip install 'simbandit[llm]'). Everything below is imported on first use.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_bridge.candidates import candidate_pool as candidate_pool
    from llm_bridge.candidates import preference_table as preference_table
    from llm_bridge.enumerable import EnumerableLM as EnumerableLM
    from llm_bridge.policy import LMPolicy as LMPolicy
    from llm_bridge.scoring import sequence_log_probs as sequence_log_probs
    from llm_bridge.scoring import token_log_probs as token_log_probs
    from llm_bridge.training import Training as Training

_NAMES = {
    "candidate_pool": "llm_bridge.candidates",
    "preference_table": "llm_bridge.candidates",
    "EnumerableLM": "llm_bridge.enumerable",
    "LMPolicy": "llm_bridge.policy",
    "Training": "llm_bridge.training",
    "sequence_log_probs": "llm_bridge.scoring",
    "token_log_probs": "llm_bridge.scoring",
}

__all__ = [
    "EnumerableLM",
    "LMPolicy",
    "Training",
    "candidate_pool",
    "preference_table",
    "sequence_log_probs",
    "token_log_probs",
]


def need_extra() -> None:
    """Raises ImportError, naming the extra, where one of its packages is not installed."""
    missing = [name for name in ("transformers", "safetensors", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise ImportError(f"{missing[0]}: language models need it; install the extra, pip install -e '.[llm]'")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        if name != "EnumerableLM":  # which lists any module that gives logits
            need_extra()
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'llm_bridge' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Without the extra `llm` only test_installed.py is collected, and says why."""

from importlib.util import find_spec

if any(find_spec(name) is None for name in ("transformers", "safetensors", "peft")):
    collect_ignore_glob = ["test_[!i]*.py"]

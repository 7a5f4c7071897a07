"""Without the extra `llm` only test_installed.py is collected, and says why."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

if any(find_spec(name) is None for name in ("transformers", "safetensors", "peft")):
    collect_ignore_glob = ["test_[!i]*.py"]


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """The folder of a toy model, trained once for all workers."""
    from llm_bridge.toy import train

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if shared.name.startswith("popen-gw") else shared
    folder = shared / "toy"
    with FileLock(shared / "toy.lock"):
        if not (folder / "toy.json").exists():
            train(folder)
    return folder

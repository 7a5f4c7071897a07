"""The extra `llm`: these tests run where it is installed, and the package imports nothing of it before it is needed."""

import subprocess
import sys

import pytest


def test_the_extra_is_installed():
    for name in ("transformers", "safetensors", "peft"):
        pytest.importorskip(name, reason="the extra `llm` is not installed: pip install -e '.[llm]'")


def test_importing_the_bridge_imports_nothing_heavy():
    code = "import sys, llm_bridge; print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The extra `llm`: these tests run where it is installed, and the package imports nothing of it before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llm_bridge
from llm_bridge.cli import main


def test_the_extra_is_installed():
    for name in ("transformers", "safetensors", "peft"):
        pytest.importorskip(name, reason="the extra `llm` is not installed: pip install -e '.[llm]'")


def test_importing_the_bridge_imports_nothing_heavy():
    code = "import sys, llm_bridge; print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_the_extra_its_name_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="language models need it; install the extra"):
        _ = llm_bridge.LMPolicy
    with pytest.raises(SystemExit) as ended:
        main(["toy", "--output", str(tmp_path / "toy")])
    assert ended.value.code == 2
    assert "install the extra, pip install -e '.[llm]'" in capsys.readouterr().err


FILES = sorted((Path(__file__).parents[2] / "llm_bridge").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_house_rules_hold(path):
    text = path.read_text()
    for phrase in ("except Exception", "except:", "TO" + "DO", "FIX" + "ME", "type: ignore", "pragma", "manual_seed"):
        assert phrase not in text
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert len(text.splitlines()) <= 400

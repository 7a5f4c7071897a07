"""Every Python block of the documentation runs, each page in one namespace; a study block is run as a study."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from simbandit import algorithms, losses
from simbandit.cli import main
from simbandit.study import Study

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A page may register a loss and a row; afterwards they are gone."""
    monkeypatch.setattr(algorithms, "REGISTRY", dict(algorithms.REGISTRY))
    monkeypatch.setattr(losses, "__all__", list(losses.__all__))
    known = set(vars(losses))
    yield
    for name in set(vars(losses)) - known:
        delattr(losses, name)


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "language_models.md":
        pytest.importorskip("transformers", reason="the extra `llm` is not installed: pip install -e '.[llm]'")
    monkeypatch.chdir(tmp_path)
    assert blocks(page), f"{page.name} shows no code"
    for i, text in enumerate(blocks(page)):
        file = tmp_path / f"block{i}.py"
        file.write_text(text)
        namespace = {"__name__": "__main__"}
        exec(compile(text, str(file), "exec"), namespace)
        study = namespace.get("study")
        if isinstance(study, Study):
            main(["run", str(file), "--smoke", "--replicates", "4", "--jobs", "1", "--out", str(tmp_path / "out")])
            assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
            assert len(list((tmp_path / "out").glob("*.parquet"))) == 2

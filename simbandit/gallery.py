"""Pages from stored results: the table of verdicts, a figure's entry, and the gallery of all entries in a
folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from simbandit import __version__

HEADINGS = ["claim", "paper", "measured [95 % interval]", "verdict"]
GALLERY = "README.md"


def verdict_rows(verdicts: pd.DataFrame) -> list[list[str]]:
    """The table that readers see: claim (with its source), paper, measured with interval, verdict."""
    return [
        [f"{row['claim']} ({row['source']})", row["paper"], _measured(row), row["verdict"]]
        for row in verdicts.to_dict("records")
    ]


def _measured(row: Mapping[Any, Any]) -> str:
    measured, low, high = row["measured"], row["low"], row["high"]
    if np.isnan(measured):
        return "-"
    return f"{measured:.3g}" if low == high else f"{measured:.3g} [{low:.3g}, {high:.3g}]"


def text_table(headings: list[str], rows: list[list[str]]) -> str:
    """Columns aligned for a terminal."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    ruled = [headings, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in ruled)


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    cells = [headings, ["---"] * len(headings), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def entry(
    name: str,
    title: str,
    source: str,
    command: str,
    verdicts: pd.DataFrame,
    tuned: Mapping[str, Any],
    candidates: int,
    replicates: int,
    seconds: float,
) -> str:
    """A figure's page: the picture, the command that makes it, every claim with its verdict, what was
    tuned."""
    parts = [
        f"## {title}",
        f"Source: {source}. Made by `{command}` with {replicates} replicates.",
        f"[![{title}]({name}.png)]({name}.svg)",
        markdown_table(HEADINGS, verdict_rows(verdicts)) if len(verdicts) else "This study makes no claims.",
    ]
    if tuned:
        values = [[contender, f"`{algorithm}`"] for contender, algorithm in tuned.items()]
        parts.append(f"Tuned, best of {candidates} candidates each, on seeds that the figure does not use:")
        parts.append(markdown_table(["contender", "tuned value"], values))
    parts.append(f"{versions()}; {seconds:.0f} s of computation.")
    return "\n\n".join(parts) + "\n"


def versions() -> str:
    return (
        f"simbandit {__version__}, torch {torch.__version__}, numpy {np.__version__}, "
        f"Python {platform.python_version()}"
    )


def rebuild(folder: Path) -> Path:
    """Writes folder/README.md from all entries folder/*.md, in the order of their names."""
    entries = {path.stem: path.read_text() for path in sorted(folder.glob("*.md")) if path.name != GALLERY}
    titles = {name: text.partition("\n")[0].removeprefix("## ") for name, text in entries.items()}
    contents = "\n".join(f"* [{title}]({name}.md)" for name, title in titles.items())
    introduction = (
        "Every figure with the command that makes it, what its paper claims, what was measured, and the verdict.\n"
        "A claim that fails is shown as failed. This page is assembled from the entries beside it."
    )
    temporary = folder / f".{GALLERY}.tmp"
    temporary.write_text("\n\n".join(["# Figures", introduction, contents, "\n".join(entries.values())]))
    os.replace(temporary, folder / GALLERY)
    return folder / GALLERY

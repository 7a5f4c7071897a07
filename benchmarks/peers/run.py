"""LinUCB of several libraries against ours, on each library's own model: `python benchmarks/peers/run.py [--write]`.

Every peer runs in an environment of its own, one replicate at a time, on inputs drawn beforehand; ours runs through
`simulate`, draws and regret curve included, with and without its compiled kernels. Runs of all are interleaved, one
thread each; the table shows the least of five (other processes only ever add). --write puts it into README.md beside
this file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import venv
from datetime import date
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
REPETITIONS = 5
PINS: dict[str, list[list[str]]] = {
    "obp": [
        ["numpy<2", "scipy<1.12", "scikit-learn<1.5", "pandas<2.3", "pyyaml", "tqdm", "matplotlib", "seaborn"],
        ["--no-deps", "--ignore-requires-python", "obp==0.5.7"],
    ],
    "coba": [["coba==8.1.0", "numpy<3"]],
    "mabwiser": [["mabwiser==2.7.4"]],
    "striatum": [["numpy<2", "six", "striatum==0.2.5"]],
}
PLAIN, COMPILED = "simbandit, plain", "simbandit, compiled"
MODELS = {
    "shared": "one regression on the actions' features",
    "disjoint": "one regression an arm on the context's vector",
    "own": "one regression an arm on that arm's features",
}
Rows = dict[tuple[str, str, int, int], list[dict]]  # by model, library, d, K: a row per repetition


def environment(name: str, root: Path) -> Path:
    """The peer's interpreter; built on first use."""
    python = root / name / "bin" / "python"
    if not python.exists():
        venv.create(root / name, with_pip=True)
        for packages in PINS[name]:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def once(label: str, python: Path | str, script: str, seed: int, rows: Rows, **variables: str) -> None:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
    done = subprocess.run(
        [str(python), "-W", "ignore", str(HERE / script), str(seed)],
        env={**os.environ, **threads, "PYTHONPATH": path, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{label} failed: {done.stderr.strip().splitlines()[-1]}")
    for row in map(json.loads, done.stdout.splitlines()):
        rows.setdefault((row["model"], label, row["dim"], row["arms"]), []).append(row)


def table(rows: Rows) -> str:
    """A Markdown table per model."""
    lines = []
    for model, told in MODELS.items():
        lines += [
            f"### {model}: {told}",
            "",
            "| d | K | library | us a round | times ours, plain | times ours, compiled | same actions | regret |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for dim, arms in sorted({key[2:] for key in rows}):
            here = {label: found for (m, label, d, k), found in rows.items() if (m, d, k) == (model, dim, arms)}
            us = {label: min(row["us"] for row in found) for label, found in here.items()}
            for label in sorted(here, key=lambda label: us[label]):
                found = here[label]
                regrets = np.concatenate([row["regret"] for row in found])
                error = regrets.std(ddof=1) / len(regrets) ** 0.5
                same = f"{np.mean([row['same'] for row in found]):.0%}" if "same" in found[0] else ""
                times = [f"{us[label] / us[ours]:.1f}" if ours in us else "" for ours in (PLAIN, COMPILED)]
                cells = [dim, arms, f"{label} {found[0]['version']}", f"{us[label]:.3g}", *times, same]
                lines.append("| " + " | ".join(map(str, [*cells, f"{regrets.mean():.1f} ± {2 * error:.1f}"])) + " |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    names = [a for a in arguments if a != "--write"] or sorted(PINS)
    unknown = sorted(set(names) - set(PINS))
    if unknown:
        raise SystemExit(f"peers: {unknown} are not among {sorted(PINS)}")
    root = Path(os.environ.get("SIMBANDIT_PEERS", Path.home() / ".cache" / "simbandit-peers"))
    pythons = {name: environment(name, root) for name in names}
    rows: Rows = {}
    for seed in range(REPETITIONS):
        for name in names:
            once(name, pythons[name], f"{name}_peer.py", seed, rows)
        once(PLAIN, sys.executable, "simbandit_peer.py", seed, rows, SIMBANDIT_COMPILED="0")
        once(COMPILED, sys.executable, "simbandit_peer.py", seed, rows, SIMBANDIT_COMPILED="1")
    machine = f"{processor()}, one thread, Python {platform.python_version()}, NumPy {np.__version__}, {date.today()}"
    text = table(rows)
    print(machine, text, sep="\n\n")
    if "--write" in arguments:
        page = HERE / "README.md"
        start = page.read_text().split("<!-- measured -->")[0]
        page.write_text(f"{start}<!-- measured -->\n\nMeasured on: {machine}.\n\n{text}")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main(sys.argv[1:])

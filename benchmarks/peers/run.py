"""Times peers' LinUCB, each in an environment of its own: `python benchmarks/peers/run.py [NAME ...]`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
PINS: dict[str, list[list[str]]] = {
    "obp": [
        ["numpy<2", "scipy<1.12", "scikit-learn<1.5", "pandas<2.3", "pyyaml", "tqdm", "matplotlib", "seaborn"],
        ["--no-deps", "--ignore-requires-python", "obp==0.5.7"],
    ],
    "coba": [["coba==8.1.0", "numpy<3"]],
    "mabwiser": [["mabwiser==2.7.4"]],
}


def environment(name: str, root: Path) -> Path:
    """The peer's interpreter; built on first use."""
    python = root / name / "bin" / "python"
    if not python.exists():
        venv.create(root / name, with_pip=True)
        for packages in PINS[name]:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def main(names: list[str]) -> None:
    root = Path(os.environ.get("SIMBANDIT_PEERS", Path.home() / ".cache" / "simbandit-peers"))
    unknown = sorted(set(names) - set(PINS))
    if unknown:
        raise SystemExit(f"peers: {unknown} are not among {sorted(PINS)}")
    print("peer        version   d   K  us/round  loop us   ratio  same  regret")
    for name in names or sorted(PINS):
        python = environment(name, root)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        done = subprocess.run(
            [str(python), "-W", "ignore", str(HERE / f"{name}_peer.py")],
            env={**os.environ, **threads, "PYTHONPATH": str(HERE.parent)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"{name:10s} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        for row in map(json.loads, done.stdout.splitlines()):
            sizes = f"{name:10s} {row['version']:8s} {row['dim']:3d} {row['arms']:3d}"
            times = f"{row['us']:9.1f} {row['loop_us']:8.1f} {row['us'] / row['loop_us']:7.1f}"
            print(f"{sizes} {times} {row['same']:5.0%} {row['regret']:7.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])

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
        ["numpy<2", "scipy<1.12", "scikit-learn<1.5", "pandas<2.3", "pyyaml", "tqdm"],
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
    print(f"{'peer':10s} {'version':8s} {'d':>3s} {'K':>3s} {'us/round':>9s} {'loop':>6s} {'ratio':>6s} {'same':>5s} {'regret':>6s}")
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
            print(
                f"{name:10s} {row['version']:8s} {row['dim']:3d} {row['arms']:3d} {row['us']:9.1f} {row['loop_us']:6.1f} "
                f"{row['us'] / row['loop_us']:6.1f} {row['same']:5.0%} {row['regret']:6.2f}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])

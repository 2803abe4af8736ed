"""Tab completes the arguments of every command in bash."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

SCRIPT = """
vitlab() { python -m vitlab "$@"; }
eval "$(vitlab -sc install=bash)"
while read -r COMP_LINE; do
  COMP_POINT=${#COMP_LINE}
  read -ra COMP_WORDS <<< "$COMP_LINE"
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  COMPREPLY=()
  _vitlab
  echo "${COMPREPLY[*]}"
done
"""
LINES = {
    "python train.py model=vit_s": "model=vit_scratch model=vit_small",
    "python train.py -m seed=0,1 optimizer.l": "optimizer.lr=",
    "python evaluate.py spl": "split=",
    "python predict.py trainer=dd": "trainer=ddp trainer=ddp_cpu",
    "python predict.py images=READ": "images=README.md",
    "python -m vitlab.explain tar": "target=",
    "python -m vitlab.leaderboard to": "top=",
    "python elsewhere.py mod": "",
    "vitlab exp": "explain export",
    "vitlab train -m seed=0,1 optimizer.l": "optimizer.lr=",
    "vitlab explain tar": "target=",
}


def test_each_command_is_completed() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", SCRIPT],
        input="\n".join(LINES) + "\n",
        cwd=ROOT,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert dict(zip(LINES, result.stdout.split("\n"), strict=False)) == LINES, result.stderr

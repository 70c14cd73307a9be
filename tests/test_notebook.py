"""docs/notebook.ipynb: its six cells, one after the other, on a small text and a small model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import HANG, ROOT, TEXT, TINY
from support.datasets import write_dataset

pytestmark = pytest.mark.slow(reason="runs the whole notebook")

SHELL = """\
import subprocess

def shell(line: str) -> None:
    subprocess.run(line, shell=True, check=True)

"""


def script_of(notebook: Path) -> str:
    """The code cells as one script. A shell runs what follows a `!`, with success; `%pip` is left out."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(sources) == 6 and not any(cell.get("outputs") for cell in cells)
    code = "\n".join(sources)
    code = re.sub(r"^( *)!(.*)$", r"\1shell(f'\2')", code, flags=re.MULTILINE)
    return SHELL + re.sub(r"^%pip .*$", "", code, flags=re.MULTILINE)


def test_the_notebook_runs_from_the_first_cell_to_the_last(tmp_path: Path) -> None:
    for name in ("train.py", "plot.py", "model.py", "engine"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "configs").mkdir()
    small = TINY.replace('dataset = "topics"', 'dataset = "shakespeare_char"')
    (tmp_path / "configs/shakespeare_char.py").write_text(small)
    write_dataset("shakespeare_char", TEXT, "char", 0.1, tmp_path / "data")
    script = script_of(ROOT / "docs/notebook.ipynb")
    assert "STEPS = 1000\n" in script
    finished = subprocess.run(
        [sys.executable, "-"],  # as in a notebook, imports are looked for in the current folder
        input=script.replace("STEPS = 1000\n", "STEPS = 20\n"),
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert finished.returncode == 0, finished.stderr
    assert "done: 20 steps" in finished.stdout and "done: 40 steps" in finished.stdout
    assert "\nROMEO:" in finished.stdout and "SwiGLU" in finished.stdout

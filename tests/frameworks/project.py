"""The project as tests in other environments reach it: by its commands, and by its server."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/addition/model"
PYTHON = os.environ.get("ENDOREWARD_PYTHON", sys.executable)
STORE = ROOT / "tests/data/store-format-2"  # 8 pairs of additions

os.environ.setdefault("OMP_NUM_THREADS", "1")


def ours(*words: Any) -> subprocess.CompletedProcess[str]:
    """A command of the project."""
    command = [PYTHON, "-m", "jobs", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)


def asked(server: str, prompt: str, response: str) -> float:
    """The server's reward of a text, without a shim."""
    body = json.dumps({"inputs": [{"prompt": prompt, "responses": [response]}]}).encode()
    request = urllib.request.Request(f"{server}/v1/rewards", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return float(json.load(answer)["data"][0]["reward"])

"""The cases of benchmarks/gpu.py are the tests here: nothing is written twice."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

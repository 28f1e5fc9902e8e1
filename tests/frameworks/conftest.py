"""Training frameworks' own code against a server of ours, which runs in the project's environment while they have their own.

`make test-shims` gives ENDOREWARD_PYTHON, the project's interpreter. Only TRL's tests import anything of the project.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from project import MODEL, PYTHON, ROOT, ours

sys.path.append(str(ROOT / "benchmarks"))
from local_server import local_server


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server of the embedded model."""
    with local_server(MODEL, PYTHON) as address:
        yield address


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture
def shim(tmp_path: Path) -> Callable[[str], Path]:
    """The file that `endoreward shim` prints, saved."""

    def save(name: str) -> Path:
        path = tmp_path / f"endoreward_{name.replace('-', '_')}.py"
        path.write_text(ours("shim", name).stdout)
        return path

    return save


@lru_cache
def _model() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64)


@pytest.fixture(scope="session")
def token_rewards() -> Callable[[Sequence[int], Sequence[int]], list[float]]:
    """The reward of each token from the logits, at alpha = gamma = 1, without a word of the project's: Q(s, a) - V(s'), with
    V = 0 at the end; they sum to V(s_1) + log pi of the response."""

    def rewards(prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        with torch.no_grad():
            logits = _model()(torch.tensor([[*prompt, *response]])).logits[0]
        at = logits[len(prompt) - 1 : -1]
        taken = at.gather(1, torch.tensor(response)[:, None])[:, 0]
        after = torch.cat([torch.logsumexp(at[1:], 1), torch.zeros(1, dtype=at.dtype)])
        return (taken - after).tolist()

    return rewards

"""The scorer on a CUDA device in bfloat16, against float32 on the same weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("layers", [2, 8])
def test_bfloat16_stays_close_to_float32(layers: int) -> None:
    import transformers

    from pipeline.models.scoring import Scorer
    from pipeline.tokens import TokenizedTurn

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=5000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    exact = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).to(torch.float32).cuda()
    rounded = transformers.Qwen2ForCausalLM(config).cuda()
    rounded.load_state_dict(exact.state_dict())
    rounded = rounded.to(torch.bfloat16)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 5000, n).tolist() for n in (3, 50, 200)]
    turns = [TokenizedTurn(p, rng.integers(0, 5000, n).tolist(), []) for p in prompts for n in (1, 40, 300)]
    wanted, scorer = Scorer(exact).score(turns), Scorer(rounded)
    assert scorer.layout == "packed" and scorer.head is not None
    for a, b in zip(wanted, scorer.score(turns), strict=True):
        assert np.abs(a.logprobs - b.logprobs).mean() < 0.02
        assert abs(a.logprobs.sum() - b.logprobs.sum()) < 0.01 * np.abs(a.logprobs).sum()

"""The policy's log-probabilities and their gradients, against the model's own logits in float64."""

import pytest
import torch
import transformers

from pipeline.errors import ConfigError
from pipeline.tokens import TokenizedTurn
from pipeline.training.policy import Policy, choose_layout

SIZES = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"intermediate_size": 32, "num_key_value_heads": 2}
MODELS = {
    "llama": (transformers.LlamaConfig, LLAMA),
    "tied": (transformers.LlamaConfig, {**LLAMA, "tie_word_embeddings": True}),
    "gemma2": (
        transformers.Gemma2Config,
        {**LLAMA, "head_dim": 6, "sliding_window": 8, "final_logit_softcapping": 2.0},
    ),
    "granite": (transformers.GraniteConfig, {**LLAMA, "logits_scaling": 3.0}),
    "phi": (transformers.PhiConfig, {"intermediate_size": 32, "num_attention_heads": 3}),  # a head with a bias
    "gpt2": (transformers.GPT2Config, {"n_positions": 128}),
    "gpt_neo": (transformers.GPTNeoConfig, {"attention_types": [[["global", "local"], 1]], "window_size": 8}),
}
TURNS = [
    TokenizedTurn([5, 6, 7], [8, 9, 10, 11], []),
    TokenizedTurn([12] * 11, [13], []),
    TokenizedTurn([5, 6, 7], [14, 15], []),  # its sibling is not its neighbour
    TokenizedTurn([20], [21, 22, 23, 24, 25, 26, 27, 28, 29, 30], []),
]


def model(name: str, dtype: torch.dtype = torch.float64) -> transformers.PreTrainedModel:
    kind, further = MODELS[name]
    torch.manual_seed(0)
    config = kind(**{**SIZES, **further}, initializer_range=0.3)
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


def by_own_logits(policy: Policy) -> torch.Tensor:
    parts = []
    for turn in TURNS:
        logits = policy.model(torch.tensor([turn.prompt_ids + turn.response_ids])).logits[0].log_softmax(-1)
        parts += [logits[len(turn.prompt_ids) - 1 + h, token] for h, token in enumerate(turn.response_ids)]
    return torch.stack(parts)


def gradients(policy: Policy, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1.0, 2.0, len(logprobs), dtype=logprobs.dtype)
    policy.zero_grad()
    (weights * logprobs).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_log_probabilities_and_gradients_are_those_of_the_models_own_logits(name: str, layout: str) -> None:
    policy = Policy(model(name))
    own = by_own_logits(policy)
    due = gradients(policy, own)
    policy.head.rows, policy.head.columns = 3, 40  # several tiles
    if (name, layout) == ("gpt_neo", "packed"):
        with pytest.raises(ConfigError, match=r"learner.layout = packed does not fit GPTNeo"):
            choose_layout(policy, policy, layout)
        return
    assert choose_layout(policy, policy, layout) == []
    assert policy.layout == layout
    got = policy(TURNS)
    torch.testing.assert_close(
        got, own, rtol=1e-6, atol=1e-6
    )  # some layers compute in float32 whatever the weights are
    found = gradients(policy, got)
    assert found.keys() == due.keys()
    for parameter, gradient in due.items():
        assert (found[parameter] - gradient).norm() <= 1e-5 * gradient.norm(), parameter


def test_packed_and_padded_give_the_same_gradients_in_float32() -> None:
    found = {}
    for layout in ("packed", "padded"):
        policy = Policy(model("llama", torch.float32))
        choose_layout(policy, policy, layout)
        found[layout] = gradients(policy, policy(TURNS))
    for name, gradient in found["padded"].items():
        worst = (found["packed"][name] - gradient).norm() / gradient.norm()
        assert worst < 1e-5, name


def test_layout_is_chosen_and_what_does_not_fit_is_said() -> None:
    policy = Policy(model("llama"))
    assert choose_layout(policy, policy, "auto") == [] and policy.layout == "packed"
    policy = Policy(model("gpt_neo"))
    [note] = choose_layout(policy, policy, "auto")
    assert "GPTNeoForCausalLM cannot be packed" in note and policy.layout == "padded"


def test_logits_that_are_more_than_the_output_matrix_are_refused() -> None:
    odd = model("llama")
    odd.lm_head.register_forward_hook(lambda module, given, out: out + out.square())
    policy = Policy(odd)
    with pytest.raises(ConfigError, match="does more to its logits than the output matrix"):
        choose_layout(policy, policy, "auto")


def test_the_largest_tensor_is_a_tile() -> None:
    """Neither pass makes a tensor of [P, V]."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else [out]:
                if isinstance(each, torch.Tensor):
                    self.numel = max(self.numel, each.numel())
            return out

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": 5000}, **LLAMA)
    policy = Policy(transformers.AutoModelForCausalLM.from_config(config))
    policy.head.rows, policy.head.columns = 16, 5000
    turns = [TokenizedTurn([1, 2], list(range(3, 203)), []) for _ in range(4)]
    with Largest() as seen:
        policy(turns).sum().backward()
    assert seen.numel == 5000 * 24, "the output matrix and its gradient are the largest: a tile is 16 x 5000"


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(
    ("kind", "further"),
    [
        (transformers.GPT2Config, {"n_positions": 128, "resid_pdrop": 0.5, "attn_pdrop": 0.5}),
        (transformers.OPTConfig, {"ffn_dim": 32, "dropout": 0.5, "word_embed_proj_dim": 24}),
        (transformers.LlamaConfig, {**LLAMA, "attention_dropout": 0.5}),
    ],
    ids=["gpt2", "opt", "llama"],
)
def test_dropout_is_off(kind: type, further: dict, layout: str) -> None:
    torch.manual_seed(0)
    policy = Policy(transformers.AutoModelForCausalLM.from_config(kind(**SIZES, **further))).train()
    policy.use_layout(layout)
    torch.testing.assert_close(policy(TURNS), policy(TURNS), rtol=0, atol=0)

"""The policy's log-probabilities, entropies and their gradients, against the model's own logits in float64; its critic."""

from collections.abc import Callable

import pytest
import torch
import transformers

from pipeline.errors import ConfigError
from pipeline.models.scoring.attention import Packing
from pipeline.models.scoring.batches import Family
from pipeline.models.scoring.head import Reshape
from pipeline.models.scoring.layouts import pack
from pipeline.tokens import TokenizedTurn
from pipeline.training.adapters import with_adapters
from pipeline.training.config import LoraSection
from pipeline.training.policy import Policy, TokenLogprobs, choose_layout

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


def by_own_logits(policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies, [P] each."""
    found, taken = [], [token for turn in TURNS for token in turn.response_ids.tolist()]
    for turn in TURNS:
        logits = policy.model(torch.tensor([[*turn.prompt_ids.tolist(), *turn.response_ids.tolist()]])).logits[0]
        found.append(logits[len(turn.prompt_ids) - 1 : -1])
    return naive(torch.cat(found), torch.tensor(taken))


def naive(logits: torch.Tensor, taken: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs = logits.log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs.masked_fill(logprobs.isinf(), 0.0)).sum(1)
    return logprobs.gather(1, taken[:, None])[:, 0], entropies


def gradients(policy: Policy, logprobs: torch.Tensor, entropies: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    weights = torch.linspace(-1.0, 2.0, len(logprobs), dtype=logprobs.dtype)
    policy.zero_grad()
    loss = (weights * logprobs).sum() + (0.0 if entropies is None else (weights.flip(0) ** 2 * entropies).sum())
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_log_probabilities_entropies_and_gradients_are_those_of_the_models_own_logits(name: str, layout: str) -> None:
    policy = Policy(model(name), entropies=True)
    own = by_own_logits(policy)
    due = gradients(policy, *own)
    policy.head.rows, policy.head.columns = 3, 40  # several tiles
    if (name, layout) == ("gpt_neo", "packed"):
        with pytest.raises(ConfigError, match=r"learner.layout = packed does not fit GPTNeo"):
            choose_layout(policy, policy, layout)
        return
    assert choose_layout(policy, policy, layout) == []
    assert policy.layout == layout
    *got, values = policy(TURNS)
    assert values is None
    for each, naively in zip(got, own, strict=True):  # some layers compute in float32 whatever the weights are
        torch.testing.assert_close(each, naively, rtol=1e-6, atol=1e-6)
    found = gradients(policy, *got)
    assert found.keys() == due.keys()
    for parameter, gradient in due.items():
        assert (found[parameter] - gradient).norm() <= 1e-5 * gradient.norm(), parameter


def test_packed_and_padded_give_the_same_gradients_in_float32() -> None:
    found = {}
    for layout in ("packed", "padded"):
        policy = Policy(model("llama", torch.float32))
        choose_layout(policy, policy, layout)
        found[layout] = gradients(policy, policy(TURNS).logprobs)
    for name, gradient in found["padded"].items():
        worst = (found["packed"][name] - gradient).norm() / gradient.norm()
        assert worst < 1e-5, name


def test_layout_is_chosen_and_what_does_not_fit_is_said() -> None:
    policy = Policy(model("llama"))
    assert choose_layout(policy, policy, "auto") == [] and policy.layout == "packed"
    policy = Policy(model("gpt_neo"))
    [note] = choose_layout(policy, policy, "auto")
    assert "GPTNeoForCausalLM cannot be packed" in note and policy.layout == "padded"


BFLOAT16 = {
    **MODELS,
    "qwen2": (transformers.Qwen2Config, LLAMA),
    "qwen3": (transformers.Qwen3Config, {**LLAMA, "head_dim": 6}),
    "gemma3": (transformers.Gemma3TextConfig, {**LLAMA, "head_dim": 6, "sliding_window": 8}),
    "neox": (transformers.GPTNeoXConfig, {"intermediate_size": 48}),
    "opt": (transformers.OPTConfig, {"ffn_dim": 48, "word_embed_proj_dim": 24}),
    "cohere": (transformers.CohereConfig, LLAMA),
}
PACKED = [name for name in BFLOAT16 if name != "gpt_neo"]


def in_bfloat16(name: str, spread: float) -> Policy:
    kind, further = BFLOAT16[name]
    torch.manual_seed(0)
    config = kind(**{**SIZES, "num_hidden_layers": 4, **further}, initializer_range=spread)
    return Policy(transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval())


@pytest.mark.parametrize("spread", [0.02, 0.3])
@pytest.mark.parametrize("name", PACKED)
def test_rounding_in_bfloat16_is_no_reason_to_pad(name: str, spread: float) -> None:
    policy = in_bfloat16(name, spread)
    assert choose_layout(policy, policy, "auto") == [] and policy.layout == "packed"


def joined(packing: Packing) -> Packing:
    """Responses see those before them."""
    return Packing([(start, prefix, [sum(parts)]) for start, prefix, parts in packing.families])


def cut_off(packing: Packing) -> Packing:
    """The last of several responses has lost its prompt."""
    found: list[tuple[int, int, list[int]]] = []
    for start, prefix, parts in packing.families:
        here = parts[:-1] if len(parts) > 1 else parts
        found.append((start, prefix, here))
        found += [(start + prefix + sum(here), parts[-1], [])] * (len(parts) > 1)
    return Packing(found)


@pytest.mark.parametrize("wrong", [joined, cut_off])
@pytest.mark.parametrize("spread", [0.05, 0.3])
@pytest.mark.parametrize("name", PACKED)
def test_a_wrong_packing_is_found_out_in_bfloat16(
    name: str, spread: float, wrong: Callable[[Packing], Packing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it changes little beside log-probabilities that are all near -log(97)."""

    def pack_wrongly(families: list[Family]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Packing]:
        *tensors, packing = pack(families)
        return (*tensors, wrong(packing))  # type: ignore[return-value]

    monkeypatch.setattr("pipeline.training.policy.pack", pack_wrongly)
    policy = in_bfloat16(name, spread)
    [note] = choose_layout(policy, policy, "auto")
    assert "cannot be packed" in note and policy.layout == "padded"


@pytest.mark.parametrize("name", ["gemma2", "granite"])
def test_logits_that_are_reshaped_otherwise_are_found_out_in_bfloat16(name: str) -> None:
    policy = in_bfloat16(name, 0.3)
    policy.head.reshape = Reshape()
    with pytest.raises(ConfigError, match="does more to its logits than the output matrix"):
        choose_layout(policy, policy, "auto")


def test_logits_that_are_more_than_the_output_matrix_are_refused() -> None:
    odd = model("llama")
    odd.lm_head.register_forward_hook(lambda module, given, out: out + out.square())
    policy = Policy(odd)
    with pytest.raises(ConfigError, match="does more to its logits than the output matrix"):
        choose_layout(policy, policy, "auto")


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("llama", "lm_head", "adapters on lm_head of LlamaForCausalLM, the output matrix"),
        ("tied", "lm_head", "adapters on lm_head of LlamaForCausalLM, the output matrix"),
        ("tied", "embed_tokens", "adapters on model.embed_tokens of LlamaForCausalLM, the token embeddings"),
        ("gpt2", "wte", "adapters on transformer.wte of GPT2LMHeadModel, the token embeddings"),
        ("llama", "embed_tokens", None),
        ("tied", "q_proj", None),
        ("tied", "all-linear", None),
    ],
)
def test_adapters_of_the_output_matrix_are_refused(name: str, target: str, said: str | None) -> None:
    adapted = model(name)
    with_adapters(adapted, LoraSection(rank=2, targets=target if target == "all-linear" else [target]), seed=0)
    if said is not None:
        with pytest.raises(ConfigError, match=f"{said}.*leave it out"):
            Policy(adapted)
        return
    policy = Policy(adapted)
    for parameter, values in policy.named_parameters():
        if "lora_" in parameter:
            torch.nn.init.normal_(values)  # else half of them are 0 and have no gradient to give
    found = gradients(policy, policy(TURNS).logprobs)
    learnt = {parameter for parameter, values in policy.named_parameters() if values.requires_grad}
    assert found.keys() == learnt and all(gradient.norm() > 0 for gradient in found.values())
    torch.testing.assert_close(policy(TURNS).logprobs, by_own_logits(policy)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("entropies", [False, True])
def test_the_largest_tensor_is_a_tile(entropies: bool) -> None:
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
    policy = Policy(transformers.AutoModelForCausalLM.from_config(config), entropies=entropies)
    policy.head.rows, policy.head.columns = 16, 5000
    turns = [TokenizedTurn([1, 2], list(range(3, 203)), []) for _ in range(4)]
    with Largest() as seen:
        sum(each.sum() for each in policy(turns) if each is not None).backward()
    assert seen.numel == 5000 * 24, "the output matrix and its gradient are the largest: a tile is 16 x 5000"


def of_head(
    name: str, vocabulary: int, states: torch.Tensor, taken: torch.Tensor, excluded: slice | None = None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities, entropies and the gradients of both, weighed together: in tiles of 3 x 40, and naively."""
    kind, further = MODELS[name]
    torch.manual_seed(0)
    full = kind(**{**SIZES, **further, "vocab_size": vocabulary}, initializer_range=0.3)
    built = transformers.AutoModelForCausalLM.from_config(full).to(states.dtype)
    if excluded is not None:
        built.lm_head.bias.data[excluded] = -torch.inf
    head = TokenLogprobs(built, 1, entropies=True)
    head.rows, head.columns = 3, min(40, vocabulary)
    states.requires_grad_()
    trained = {"states": states, "weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    logits = states @ head.weight.T + (0.0 if head.bias is None else head.bias)
    if name == "gemma2":
        logits = 2 * torch.tanh(logits / 2)
    own, got = naive(logits / (3 if name == "granite" else 1), taken), head(states, taken)
    found = {"logprobs": (got[0], own[0]), "entropies": (got[1], own[1])}
    weights = torch.linspace(-1.0, 2.0, len(states), dtype=states.dtype)
    for which, outputs in enumerate((got, own)):
        loss = (weights * outputs[0]).sum() + (weights.flip(0) ** 2 * outputs[1]).sum()
        slopes = torch.autograd.grad(loss, list(trained.values()))
        for key, slope in zip(trained, slopes, strict=True):
            found[key] = (slope, slope) if which == 0 else (found[key][0], slope)
    return found


@pytest.mark.parametrize("vocabulary", [1, 2, 40, 41, 163])
@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "phi"])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_entropies_of_any_vocabulary_and_of_sure_states(name: str, vocabulary: int, scale: float) -> None:
    torch.manual_seed(1)
    states = scale * torch.randn(7, 24, dtype=torch.float64)
    found = of_head(name, vocabulary, states, torch.randint(vocabulary, (7,)))
    for key, (got, due) in found.items():
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, due, rtol=1e-9, atol=1e-9 * max(1.0, due.abs().max().item()), msg=key)
    assert (found["entropies"][0] >= 0).all()
    if scale == 300 and vocabulary > 2 and name == "llama":
        assert (found["entropies"][0] < 1e-6).any(), "p_j = 0 in floating point"


@pytest.mark.parametrize(
    "excluded", [slice(3, 30), slice(0, 40), slice(40, 80), slice(80, 163)], ids=["part", "first", "second", "tail"]
)
def test_excluded_tokens_have_no_part_in_an_entropy(excluded: slice) -> None:
    """Their logits are -inf, as many as a tile holds or more."""
    torch.manual_seed(1)
    allowed = [token for token in range(163) if token not in range(163)[excluded]]
    states, taken = torch.randn(7, 24, dtype=torch.float64), torch.tensor(allowed[:3] + allowed[-4:])
    for key, (got, due) in of_head("phi", 163, states, taken, excluded).items():
        assert got.isfinite().all(), key
        torch.testing.assert_close(got, due, rtol=1e-9, atol=1e-9, msg=key)


def test_entropies_alone_may_be_in_a_loss() -> None:
    torch.manual_seed(1)
    head = TokenLogprobs(model("gemma2"), 1, entropies=True)
    states = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    taken = torch.randint(97, (5,))
    logits = 2 * torch.tanh(states @ head.weight.T / 2)
    for index in (0, 1):
        due = torch.autograd.grad(naive(logits, taken)[index].sum(), states, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(head(states, taken)[index].sum(), states), due)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropies_of_low_precision_weights_are_those_of_their_logits(dtype: torch.dtype) -> None:
    """Everything after the weights and states is in float32."""
    torch.manual_seed(1)
    head = TokenLogprobs(model("llama", dtype), 1, entropies=True)
    head.columns = 40
    states = torch.randn(64, 24).to(dtype)
    taken = torch.randint(97, (64,))
    due = naive(states.double() @ head.weight.double().T, taken)
    for got, naively in zip(head(states, taken), due, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), naively, rtol=1e-5, atol=1e-5)


def test_a_critic_starts_at_zero_and_moves_nothing_else() -> None:
    trunk = model("llama")
    before = torch.get_rng_state()
    policies = [Policy(trunk, critic_seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    first, same, other = (policy.critic.inner for policy in policies)
    assert torch.equal(first, same) and not torch.equal(first, other)
    policy = policies[0]
    logprobs, entropies, values = policy(TURNS)
    assert entropies is None and values.dtype == torch.float64
    assert (values == 0).all() and len(values) == len(logprobs)
    (values - 1).square().sum().backward()
    moved = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert moved == {f"critic.{name}" for name in ("inner", "inner_bias", "outer", "outer_bias")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_critic_learns_a_constant(dtype: torch.dtype) -> None:
    policy = Policy(model("llama", dtype), critic_seed=0)
    optimizer = torch.optim.Adam(policy.critic.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        (policy(TURNS).values - 1.5).square().mean().backward()
        optimizer.step()
    values = policy(TURNS).values
    assert values.dtype == torch.float32
    assert (values - 1.5).abs().max() < 0.1


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_output_is_in_the_order_given(layout: str) -> None:
    """The third response is computed behind the first, whose prompt it shares."""
    policy = Policy(model("llama"), entropies=True, critic_seed=0)
    torch.nn.init.normal_(policy.critic.outer)
    policy.use_layout(layout)
    alone = [torch.cat(parts) for parts in zip(*(policy([turn]) for turn in TURNS), strict=True)]
    for got, due in zip(policy(TURNS), alone, strict=True):
        torch.testing.assert_close(got, due, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(
    ("kind", "further"),
    [
        (transformers.GPT2Config, {"n_positions": 128, "resid_pdrop": 0.5, "attn_pdrop": 0.5}),
        (transformers.OPTConfig, {"ffn_dim": 32, "dropout": 0.5, "word_embed_proj_dim": 24}),
        (transformers.LlamaConfig, {**LLAMA, "attention_dropout": 0.5}),
        (transformers.OPTConfig, {"ffn_dim": 32, "layerdrop": 0.5, "word_embed_proj_dim": 24, "num_hidden_layers": 8}),
        (transformers.MixtralConfig, {**LLAMA, "num_local_experts": 4, "router_jitter_noise": 0.5}),
    ],
    ids=["gpt2", "opt", "llama", "layers", "routers"],
)
def test_dropout_is_off(kind: type, further: dict, layout: str) -> None:
    torch.manual_seed(0)
    policy = Policy(transformers.AutoModelForCausalLM.from_config(kind(**{**SIZES, **further}))).train()
    policy.use_layout(layout)
    torch.testing.assert_close(policy(TURNS).logprobs, policy(TURNS).logprobs, rtol=0, atol=0)

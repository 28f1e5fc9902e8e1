"""The policy's log-probabilities of responses to prompts with pictures, and their gradients, of each family, against the
model's own forward with the inputs of the family's own processor, in float64."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pictures import NAMES, family_processor, our_processor, picture, save, turn, user

from pipeline.config import ModelConfig, TokensConfig
from pipeline.corpus.samples import Message
from pipeline.models.loading import load_model
from pipeline.tokens import Renderer, TokenizedTurn
from pipeline.tokens.pictures import content_parts
from pipeline.training.pictures import PictureInputs
from pipeline.training.policy import Policy, choose_layout

BOTH_WAYS = ("gemma3",)  # their picture tokens see each other both ways
PROMPTS: list[list[Message]] = [
    [user("@What is this?", picture(20, 12, 1))],
    [user("First @ then @, and?", picture(40, 8, 2), picture(9, 31, 3))],
    [user("no picture at all")],
]
RESPONSES = ["yes", "abcd abcd, no!"]
BATCH = [(0, 0), (2, 1), (1, 1), (0, 1), (2, 0)]  # prompt and response; siblings are no neighbours


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save(tmp_path_factory.mktemp(request.param), request.param)


def policy_of(folder: Path) -> Policy:
    model = load_model(ModelConfig(name=str(folder), dtype="float64"), "cpu")
    return Policy(model, pictures=PictureInputs(model, our_processor(folder)))


def tokenized(folder: Path) -> list[TokenizedTurn]:
    processor = our_processor(folder)
    renderer = Renderer(processor.tokenizer, TokensConfig(), 512, pictures=processor)
    return [renderer.tokenize(turn(PROMPTS[p], RESPONSES[r], number)) for number, (p, r) in enumerate(BATCH)]  # type: ignore[misc]


def inputs(name: str, folder: Path, prompt: list[Message], response: str) -> dict[str, Any]:
    """The whole conversation as the family's own processor has it."""
    processor = family_processor(name, folder)
    said = [{"role": message["role"], "content": content_parts(message)} for message in prompt]
    said.append({"role": "assistant", "content": [{"type": "text", "text": response}]})
    text = processor.tokenizer.apply_chat_template(said, tokenize=False).removesuffix("\n")
    shown = [each.open() for message in prompt for each in message.get("pictures", ())]
    whole = processor(images=[shown] if shown else None, text=[text], return_tensors="pt", add_special_tokens=False)
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in whole.items()}


def plainly(name: str, folder: Path, policy: Policy) -> torch.Tensor:
    """[P], by the model's own forward, a response at a time."""

    def each() -> Iterator[torch.Tensor]:
        for (p, r), ours in zip(BATCH, tokenized(folder), strict=True):
            own = inputs(name, folder, PROMPTS[p], RESPONSES[r])
            ids, begin = own["input_ids"][0], len(ours.prompt_ids)
            logprobs = policy.model(**own).logits[0, begin - 1 : -1].log_softmax(-1)
            yield logprobs.gather(1, ids[begin:, None])[:, 0]

    return torch.cat(list(each()))


def gradients(policy: Policy, logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    (torch.linspace(-1.0, 2.0, len(logprobs), dtype=logprobs.dtype) * logprobs).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_log_probabilities_and_gradients_are_those_of_a_plain_forward(family: tuple[str, Path], layout: str) -> None:
    name, folder = family
    policy = policy_of(folder)
    due = plainly(name, folder, policy)
    of_due = gradients(policy, due)
    notes = choose_layout(policy, policy, layout)
    assert policy.layout == ("packed" if layout == "auto" and name not in BOTH_WAYS else "padded"), notes
    got = policy(tokenized(folder)).logprobs
    torch.testing.assert_close(got, due, rtol=1e-6, atol=1e-6)
    of_got = gradients(policy, got)
    assert of_got.keys() == of_due.keys()
    for parameter, gradient in of_due.items():
        assert (of_got[parameter] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-12, parameter


def test_without_pictures_every_parameter_has_a_gradient_and_the_vision_towers_are_zero(
    family: tuple[str, Path],
) -> None:
    """So that workers whose micro-batches have pictures and those whose have none do the same."""
    name, folder = family
    policy = policy_of(folder)
    choose_layout(policy, policy, "auto")
    turns = tokenized(folder)
    bare, pictured = turns[1], turns[0]
    of_pictured = gradients(policy, policy([pictured]).logprobs)
    of_bare = gradients(policy, policy([bare]).logprobs)
    assert of_bare.keys() == of_pictured.keys()
    vision = [key for key in of_bare if "visual" in key or "vision" in key or "projector" in key or "connector" in key]
    assert vision and all(not of_bare[key].any() for key in vision)
    blind = Policy(policy.model)
    blind.use_layout(policy.layout)
    torch.testing.assert_close(policy([bare]).logprobs, blind([bare]).logprobs) if name not in BOTH_WAYS else None

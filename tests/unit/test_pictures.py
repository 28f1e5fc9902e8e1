"""Pictures through tiny vision-language models of each family, against the family's own processor and a plain forward."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pictures import NAMES, family_processor, our_processor, picture, save, turn, user

from pipeline.config import ModelConfig, TokensConfig
from pipeline.corpus.samples import Message
from pipeline.errors import RowError
from pipeline.models.loading import context_length, load_model, load_settings, load_tokenizer
from pipeline.models.scores import Scores
from pipeline.models.scoring import Scorer
from pipeline.tokens import Renderer, TokenizedTurn
from pipeline.tokens.pictures import content_parts

PROMPTS: list[list[Message]] = [
    [user("@What is this?", picture(20, 12, 1))],
    [user("First @ then @, and?", picture(40, 8, 2), picture(9, 31, 3))],
    [user("no picture at all")],
    [user("one @", picture(16, 16, 4)), {"role": "assistant", "content": "abcd"}, user("@ again", picture(33, 30, 5))],
]
RESPONSES = ["yes", "abcd abcd, no!"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(tmp_path_factory.mktemp(name), name) for name in NAMES}


def renderer(folder: Path, **settings: Any) -> Renderer:
    config = ModelConfig(name=str(folder))
    tokenizer = load_tokenizer(config)
    context = context_length(load_settings(config), tokenizer)
    return Renderer(tokenizer, TokensConfig(**settings), context, pictures=our_processor(folder))


def conversation(prompt: list[Message]) -> list[dict[str, Any]]:
    return [{"role": message["role"], "content": content_parts(message)} for message in prompt]


def images(prompt: list[Message]) -> list[Any]:
    return [each.open() for message in prompt for each in message.get("pictures", ())]


def inputs(name: str, folder: Path, prompt: list[Message], response: str) -> dict[str, torch.Tensor]:
    """The family's own processor's, of the whole conversation."""
    processor = family_processor(name, folder)
    whole = [*conversation(prompt), {"role": "assistant", "content": [{"type": "text", "text": response}]}]
    text = processor.tokenizer.apply_chat_template(whole, tokenize=False).removesuffix("\n")
    shown = images(prompt)
    return dict(
        processor(images=[shown] if shown else None, text=[text], return_tensors="pt", add_special_tokens=False)
    )


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_the_family_s_processor(name: str, folders: dict[str, Path]) -> None:
    ours = renderer(folders[name])
    for prompt in PROMPTS:
        for response in RESPONSES:
            got = ours.tokenize(turn(prompt, response))
            due = inputs(name, folders[name], prompt, response)["input_ids"][0].tolist()
            assert [*got.prompt_ids, *got.response_ids] == due
            assert got.pictures == tuple(each for message in prompt for each in message.get("pictures", ()))


SIZES = [
    (1, 1),
    (7, 90),
    (200, 3),
    (16, 16),
    (17, 15),
    (31, 33),
    (64, 64),
    (48, 16),
    (100, 100),
    (640, 480),
    (301, 299),
]


@pytest.mark.parametrize("name", NAMES)
def test_text_of_pictures_of_any_size(name: str, folders: dict[str, Path]) -> None:
    ours, own = our_processor(folders[name]), family_processor(name, folders[name])
    for sizes in [[size] for size in SIZES] + [SIZES[3:5], SIZES[2:7]]:
        shown = [picture(*size).open() for size in sizes]
        try:
            options = own._merge_kwargs(tokenizer_init_kwargs={}, return_tensors="pt")["images_kwargs"]
            _, due = own._process_images([shown], **options)
        except ValueError:
            with pytest.raises(RowError, match="refuses"):
                ours.expanded(sizes)
            continue
        assert ours.expanded(sizes) == due


def reference(name: str, folder: Path, model: Any, prompt: list[Message], response: str, ours: TokenizedTurn) -> Scores:
    """Q, V and log pi from the full logits of one sequence in float64, the inputs the processor's own."""
    given = inputs(name, folder, prompt, response)
    given = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in given.items()}
    with torch.no_grad():
        logits = model(**given).logits[0, len(ours.prompt_ids) - 1 : -1]
    q = logits.gather(1, torch.tensor(ours.response_ids.astype(np.int64))[:, None])[:, 0]
    values = torch.logsumexp(logits, dim=1)
    return Scores(q.numpy(), values.numpy(), (q - values).numpy())


EXPECTED = {"gemma3": "cached"}  # what its pictures' tokens see both ways is not what a packed row computes


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_a_float64_forward(name: str, folders: dict[str, Path]) -> None:
    folder = folders[name]
    config, own = ModelConfig(name=str(folder)), renderer(folder)
    pairs = [(prompt, response) for prompt in PROMPTS for response in RESPONSES]
    turns = [own.tokenize(turn(*pair)) for pair in pairs]
    exact = load_model(ModelConfig(name=str(folder), dtype="float64"), "cpu")
    exact.set_attn_implementation("eager")
    due = [reference(name, folder, exact, *pair, each) for pair, each in zip(pairs, turns, strict=True)]
    scorer = Scorer(load_model(config, "cpu"), pictures=our_processor(folder), budget_tokens=400)
    assert scorer.layout == "packed" and scorer.head is not None
    together = scorer.score(turns)
    assert scorer.picture_layout == EXPECTED.get(name, "packed") and scorer.seeing.ahead
    for layout in (None, "cached", "plain"):
        scorer.picture_layout = layout or scorer.picture_layout
        alone = [scorer.score([each])[0] for each in turns]
        for batch in (together, scorer.score(turns), alone):
            for got, want in zip(batch, due, strict=True):
                for column in ("q", "values", "logprobs"):
                    np.testing.assert_allclose(getattr(got, column), getattr(want, column), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_matter(name: str, folders: dict[str, Path]) -> None:
    """Else the test above shows nothing. And prompts of equal tokens with other pictures stay apart."""
    own = renderer(folders[name])
    seen = [own.tokenize(turn([user("@What is this?", picture(20, 12, n))], "yes")) for n in (1, 2)]
    assert seen[0].prompt_ids.tolist() == seen[1].prompt_ids.tolist()
    scorer = Scorer(load_model(ModelConfig(name=str(folders[name])), "cpu"), pictures=our_processor(folders[name]))
    first, second = scorer.score(seen)
    assert np.abs(first.logprobs - second.logprobs).max() > 1e-2

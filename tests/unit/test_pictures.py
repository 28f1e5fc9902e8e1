"""Pictures through tiny vision-language models of each family, against the family's own processor and a plain forward."""

import base64
import dataclasses
import functools
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import preparing
import pytest
import torch
import transformers
from tiny import save_model
from tiny_pictures import MARKERS, NAMES, family_processor, our_processor, picture, save, template, turn, user

import endoreward
from actors.scorer import ScorerSpec
from endoreward.pictures import row_as_json
from pipeline.apart import Apart
from pipeline.config import EvaluateConfig, LabelConfig, ModelConfig, TokensConfig
from pipeline.corpus.pictures import Picture
from pipeline.corpus.samples import Message
from pipeline.errors import ConfigError, RowError
from pipeline.models.loading import context_length, folder_digest, load_model, load_tokenizer
from pipeline.models.pictures import processor
from pipeline.models.scores import Scores
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers import Endogenous, Verifier
from pipeline.rewards.labellers.beside import QUIET
from pipeline.tokens import Renderer, TokenizedTurn
from pipeline.tokens.pictures import content_parts

PROMPTS: list[list[Message]] = [
    [user("@What is this?", picture(20, 12, 1))],
    [user("First @ then @, and?", picture(40, 8, 2), picture(9, 31, 3))],
    [user("no picture at all")],
    [user("one @", picture(16, 16, 4)), {"role": "assistant", "content": "abcd"}, user("@ again", picture(33, 30, 5))],
]
RESPONSES = ["yes", "abcd abcd, no!"]


class Folders(dict[str, Path]):
    """Models by family, made when they are first asked for."""

    def __init__(self, under: pytest.TempPathFactory):
        self.under = under

    def __missing__(self, name: str) -> Path:
        try:
            self[name] = save(self.under.mktemp(name), name)
        except ImportError as error:  # Idefics3's and SmolVLM's in earlier versions of transformers
            pytest.skip(f"this version's image processor: {' '.join(str(error).split())}")
        return self[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


def renderer(folder: Path, **settings: Any) -> Renderer:
    own = our_processor(folder)
    context = context_length(own.config, own.tokenizer)
    return Renderer(own.tokenizer, TokensConfig(**settings), context, pictures=own)


@functools.lru_cache
def model(folder: Path, dtype: str = "float32") -> Any:
    return load_model(ModelConfig(name=str(folder), dtype=dtype), "cpu")


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
    (2, 2),
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
            due = own(images=[shown], text=["x".join([ours.marker] * len(sizes))], add_special_tokens=False)[
                "input_ids"
            ][0]
        except ValueError:
            with pytest.raises(RowError, match="refuses"):
                ours.expanded(sizes)
            continue
        assert list(due) == ours.tokenizer("x".join(ours.expanded(sizes)), add_special_tokens=False)["input_ids"]


def reference(name: str, folder: Path, model: Any, prompt: list[Message], response: str, ours: TokenizedTurn) -> Scores:
    """Q, V and log pi from the full logits of one sequence in float64, the inputs the processor's own."""
    given = inputs(name, folder, prompt, response)
    given = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in given.items()}
    with torch.no_grad():
        logits = model(**given).logits[0, len(ours.prompt_ids) - 1 : -1]
    q = logits.gather(1, torch.tensor(ours.response_ids.astype(np.int64))[:, None])[:, 0]
    values = torch.logsumexp(logits, dim=1)
    return Scores(q.numpy(), values.numpy(), (q - values).numpy())


AHEAD = "mm_encoder_outputs" in inspect.signature(transformers.Qwen3VLModel.forward).parameters
EXPECTED = {"gemma3": "cached"}  # what its pictures' tokens see both ways is not what a packed row computes


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_a_float64_forward(name: str, folders: dict[str, Path]) -> None:
    folder = folders[name]
    own = renderer(folder)
    pairs = [(prompt, response) for prompt in PROMPTS for response in RESPONSES]
    turns = [own.tokenize(turn(*pair)) for pair in pairs]
    exact = model(folder, "float64")
    exact.set_attn_implementation("eager")
    due = [reference(name, folder, exact, *pair, each) for pair, each in zip(pairs, turns, strict=True)]
    scorer = Scorer(model(folder), pictures=our_processor(folder), budget_tokens=400)
    assert scorer.layout == "packed" and scorer.head is not None
    together = scorer.score(turns)
    assert scorer.picture_layout == EXPECTED.get(name, "packed") and scorer.seeing.ahead == AHEAD
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
    scorer = Scorer(model(folders[name]), pictures=our_processor(folders[name]))
    first, second = scorer.score(seen)
    assert np.abs(first.logprobs - second.logprobs).max() > 1e-2


def refused(ours: Renderer, prompt: list[Message], response: str = "yes") -> str:
    """Why a turn is an error row."""
    with pytest.raises(RowError) as error:
        ours.tokenize(turn(prompt, response))
    return f"{error.value.reason}: {error.value.detail}"


@pytest.mark.parametrize("name", NAMES)
def test_text_alone_scores_as_on_the_language_model_alone(name: str, folders: dict[str, Path]) -> None:
    """After a prompt with a picture, too: nothing of that stays behind."""
    folder, own = folders[name], renderer(folders[name])
    turns = [own.tokenize(turn([user(text)], r)) for text in ("one", "another, longer") for r in RESPONSES]
    seen = own.tokenize(turn(PROMPTS[0], "yes"))
    scorer = Scorer(model(folder), pictures=our_processor(folder))
    scorer.score([seen])
    exact = model(folder, "float64")
    language = getattr(exact.model, "language_model", None) or exact.model.text_model
    for got, each in zip(scorer.score([*turns, seen])[:-1], turns, strict=True):
        ids = torch.tensor([[*each.prompt_ids, *each.response_ids]])
        with torch.no_grad():
            logits = exact.lm_head(language(input_ids=ids).last_hidden_state)[0, len(each.prompt_ids) - 1 : -1]
        due = torch.log_softmax(logits, 1).gather(1, ids[0, len(each.prompt_ids) :, None])[:, 0]
        np.testing.assert_allclose(got.logprobs, due.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "smolvlm"])
def test_typed_tokens_are_no_pictures(name: str, folders: dict[str, Path]) -> None:
    """As text they are read where control tokens are, and else the row is an error, with a picture in it and without."""
    marker = our_processor(folders[name]).marker
    typed = [[user(f"@ a {marker} b", picture(20, 12))], [user(f"a {our_processor(folders[name]).token} b")]]
    ours, keep = renderer(folders[name]), renderer(folders[name], control="keep")
    text = "".join(ours.encoding.text([i]) for i in ours.tokenize(turn(typed[0], "yes")).prompt_ids)
    assert f" a {marker} b" in text
    soft = ours.pictures.token_id
    plain = ours.tokenize(turn([user("@ a  b", picture(20, 12))], "yes")).prompt_ids
    assert (ours.tokenize(turn(typed[0], "yes")).prompt_ids == soft).sum() == (plain == soft).sum()
    for prompt in typed:
        assert refused(keep, prompt).startswith("picture_tokens:")
        assert refused(renderer(folders[name], control="refuse"), prompt).startswith("control_tokens:")
    assert refused(keep, [user("a")], f"b {ours.pictures.token}").startswith("picture_tokens:")


def test_a_model_or_template_without_sight_gives_an_error_row(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["qwen3_vl"]
    tokenizer = load_tokenizer(ModelConfig(name=str(folder)))
    blind = Renderer(tokenizer, TokensConfig(), 512)
    assert refused(blind, PROMPTS[0]).startswith("no_pictures: the prompt has a picture, and what is asked reads text")
    path = tmp_path / "text.jinja"
    path.write_text(template("qwen3_vl").replace(MARKERS["qwen3_vl"], ""))
    assert "shows 0" in refused(renderer(folder, template=str(path)), PROMPTS[0])
    turns = [renderer(folder).tokenize(turn(PROMPTS[n], "yes")) for n in (0, 2)]
    seen, text = Scorer(model(folder)).score(turns)
    assert isinstance(seen, RowError) and seen.reason == "no_pictures" and isinstance(text, Scores)
    with pytest.raises(RowError, match="reads text alone"):
        renderer(folder).prompt_ids(PROMPTS[0], True)  # what sample and rl ask with


@pytest.mark.parametrize("name", ["qwen3_vl", "idefics3"])
def test_without_a_template_a_transcript_shows_the_picture(name: str, folders: dict[str, Path]) -> None:
    ours = renderer(folders[name], template="none")
    got = ours.tokenize(turn(PROMPTS[0], "yes"))
    own = our_processor(folders[name])
    shown = own.written.replace(own.marker, own.expanded([(20, 12)])[0])
    assert ours.encoding.text(got.prompt_ids.tolist()).endswith(f"Human: {shown}What is this?\n\nAssistant:")
    assert refused(ours, [user(f"@ {own.marker}", picture(20, 12))]).startswith("picture_tokens:")


def test_a_prompt_with_pictures_is_not_cut(folders: dict[str, Path]) -> None:
    prompt = [user("long " * 20 + "@ end", picture(20, 12))]
    size = len(renderer(folders["qwen3_vl"]).tokenize(turn(prompt, "yes")).prompt_ids)
    cut = renderer(folders["qwen3_vl"], max_length=size, over_length="cut_prompt")
    assert refused(cut, prompt).startswith("prompt_too_long:") and "is not cut" in refused(cut, prompt)
    assert cut.tokenize(turn([user("long " * 200)], "yes")).truncated
    longer = renderer(folders["qwen3_vl"], max_length=size + 2)
    assert longer.tokenize(turn(prompt, "yes, and more")).truncated  # a response is


def test_a_rubric_goes_before_a_picture(folders: dict[str, Path]) -> None:
    ours = renderer(folders["qwen3_vl"], system_prompt="Judge.")
    got = ours.tokenize(
        turn([{"role": "system", **user("@ too", picture(9, 9, 7))} | {"role": "system"}, *PROMPTS[0]], "yes")
    )
    assert [each.place for each in got.pictures] == ["noise 7", "noise 1"]
    assert ours.encoding.text(got.prompt_ids.tolist()).startswith("<|im_start|>system\nJudge.\n\n<|vision_start|>")


def test_a_picture_that_a_processor_refuses_or_cannot_be_read(folders: dict[str, Path]) -> None:
    ours = renderer(folders["qwen3_vl"])
    assert "refuses a picture (900 x 2 pixels)" in refused(ours, [user("@", picture(900, 2))])
    assert refused(ours, [user("@", Picture(b"no picture", "f:0"))]).startswith("bad_picture:")
    good, sibling = (ours.tokenize(turn(PROMPTS[0], r)) for r in RESPONSES)
    bad = dataclasses.replace(good, pictures=(Picture(b"broken since", "f:0"),))
    own = our_processor(folders["qwen3_vl"])
    scored = Scorer(model(folders["qwen3_vl"]), pictures=own).score([good, bad, sibling])
    assert [getattr(each, "reason", None) for each in scored] == [None, "bad_picture", None]
    other = dataclasses.replace(good, pictures=PROMPTS[1][0]["pictures"])  # of another size than its tokens say
    right, wrong = Scorer(model(folders["qwen3_vl"]), pictures=own).score([good, other])
    assert isinstance(right, Scores) and isinstance(wrong, RowError) and wrong.reason == "picture_tokens"


@pytest.mark.skipif(not AHEAD, reason="this version of transformers takes pixels alone")
@pytest.mark.parametrize("name", NAMES)
def test_one_encoding_serves_all_responses(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(model(folders[name]), pictures=our_processor(folders[name]), budget_tokens=1)
    turns = [renderer(folders[name]).tokenize(turn(PROMPTS[0], f"answer {n}")) for n in range(5)]
    scorer.score(turns[:1])
    calls: list[int] = []
    encode = scorer.seeing.trunk.get_image_features

    @functools.wraps(encode)
    def counted(**inputs: Any) -> Any:
        calls.append(1)
        return encode(**inputs)

    monkeypatch.setattr(scorer.seeing.trunk, "get_image_features", counted)
    scorer.seeing._last = None
    scorer.score(turns)  # a budget of one token: each response is forwarded for itself
    assert len(calls) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_takes_pixels_alone(name: str, folders: dict[str, Path]) -> None:
    """As all did in earlier versions of transformers."""
    turns = [renderer(folders[name]).tokenize(turn(prompt, RESPONSES[1])) for prompt in PROMPTS[:2]]
    ahead, pixels = (Scorer(model(folders[name]), pictures=our_processor(folders[name])) for _ in range(2))
    due = ahead.score(turns)
    pixels._see()
    pixels.seeing.ahead = False
    for got, want in zip(pixels.score(turns), due, strict=True):
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-4)


def test_files_of_the_processor_are_part_of_a_model_s_digest(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "gemma3")
    digests = {folder_digest(str(folder))}
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        path.write_text(path.read_text().rstrip() + "\n\n")
        digests.add(folder_digest(str(folder)))
    assert len(digests) == 3


def test_a_template_that_lies_with_the_processor(tmp_path: Path) -> None:
    """LLaVA-OneVision's tokenizer brings that of its language model, which shows no picture."""
    folder = save(tmp_path / "m", "llava_onevision")
    (folder / "chat_template.jinja").unlink()
    own = template("llava_onevision") + "{# its processor's #}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": own}))
    assert load_tokenizer(ModelConfig(name=str(folder))).chat_template == own
    assert renderer(folder).tokenize(turn(PROMPTS[0], "yes")).pictures


def test_what_a_corpus_with_pictures_asks_is_said_before_anything_is_begun(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeing = ModelConfig(name=str(folders["qwen3_vl"]))
    label, evaluate = LabelConfig(model=seeing), EvaluateConfig(model=seeing)
    Endogenous(label, seeing).require_pictures()
    blind = ModelConfig(name=str(save_model(tmp_path / "blind")))
    with pytest.raises(ConfigError, match=r"\(llama\) reads text alone; take one of qwen2_vl"):
        Endogenous(label, blind).require_pictures()
    with pytest.raises(ConfigError, match="the reward or command verifier reads text alone"):
        Verifier(evaluate, seeing).require_pictures()
    monkeypatch.setattr(processor, "FAMILIES", {})
    with pytest.raises(ConfigError, match=r"\(qwen3_vl\) is of a family whose pictures are not read"):
        Endogenous(label, seeing).require_pictures()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r'pip install "endoreward\[pictures\]"'):
        Endogenous(label, seeing).require_pictures()


@pytest.mark.slow  # it starts a process, which imports transformers
@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_prepared_without_torch(name: str, folders: dict[str, Path]) -> None:
    """In the process beside a task, which may not import it."""
    apart = Apart(without=("torch",), environment=QUIET)
    config = ModelConfig(name=str(folders[name]))
    got = apart.call(preparing.tokens, Endogenous(LabelConfig(model=config), config), turn(PROMPTS[1], "yes"))
    assert got.prompt_ids.tolist() == renderer(folders[name]).tokenize(turn(PROMPTS[1], "yes")).prompt_ids.tolist()
    apart.stop()


def test_the_actor_s_engine_sees(folders: dict[str, Path]) -> None:
    config = ModelConfig(name=str(folders["gemma3"]))
    labeller = Endogenous(LabelConfig(model=config), config)
    asked = [labeller.renderer.tokenize(turn(PROMPTS[0], r)) for r in RESPONSES]
    answers = ScorerSpec(config, "cpu", 1, 1, 512, 0).open().answer(asked)
    due = Scorer(model(folders["gemma3"]), pictures=our_processor(folders["gemma3"])).score(asked)
    assert [a.logprobs.tolist() for a in answers] == [d.logprobs.tolist() for d in due]


def test_rows_of_a_notebook_hold_pictures(tmp_path: Path) -> None:
    """Where pictures are due; elsewhere bytes are refused as ever."""
    shown = picture(9, 7)
    (tmp_path / "a.png").write_bytes(shown.data)
    url = f"data:;base64,{base64.b64encode(shown.data).decode()}"
    parts = [{"type": "image", "image": shown.open()}, {"type": "text", "text": "?"}]
    row = {
        "images": [shown.data, tmp_path / "a.png", {"bytes": shown.data}],
        "messages": [{"role": "user", "content": parts}],
    }
    read = json.loads(row_as_json(row))
    assert read["images"] == [url, url, {"bytes": url}]
    inline = read["messages"][0]["content"][0]["image"].removeprefix("data:;base64,")
    assert Picture(base64.b64decode(inline), "").open().tobytes() == shown.open().tobytes()
    with pytest.raises(TypeError):
        row_as_json({"prompt": b"text", "response": "a"})
    assert json.loads(row_as_json({"Image": shown.data, "img": shown.data}, {"Image", "img"})) == {
        "Image": url,
        "img": url,
    }


def test_a_scorer_of_a_model_and_a_tokenizer_sees_too(folders: dict[str, Path]) -> None:
    folder = folders["qwen3_vl"]
    own = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    scorer = endoreward.Scorer(own, transformers.AutoTokenizer.from_pretrained(folder))
    row = {"image": picture(9, 7).open(), "prompt": "What?", "chosen": "yes", "rejected": "no"}
    due = [label.reward for label in endoreward.Scorer.from_pretrained(folder, device="cpu").label([row])]  # type: ignore[union-attr]
    assert [label.reward for label in scorer.label([row])] == pytest.approx(due, abs=1e-5)  # type: ignore[union-attr]
    [error] = scorer.label([{**row, "image": row["image"].convert("CMYK")}], on_error="return")
    assert isinstance(error, RowError) and error.reason == "cmyk_picture"

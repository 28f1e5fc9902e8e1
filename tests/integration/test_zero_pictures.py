"""The learner on pictures: two workers under ZeRO, of which one may have none in a micro-batch, against a plain loop of torch
over transformers' own model and processor; and what it exports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_zero import join, spawn

from pipeline.config import ModelConfig
from pipeline.corpus.pictures import Picture
from pipeline.training.batch import Response
from pipeline.training.config import TrainConfig
from pipeline.training.objectives import objective_of

FOLDER = Path(__file__).parents[2] / "examples" / "shapes"
STEPS, RATE = 4, 1e-3
SETTINGS = {
    "zero1": {"learner": {"zero_stage": 1}},
    "zero3": {"learner": {"zero_stage": 3}},
    "padded": {"learner": {"zero_stage": 2, "layout": "padded", "gradient_checkpointing": True}},
    "lora": {"learner": {"zero_stage": 1}, "lora": {"rank": 4}},
    "text": {"learner": {"zero_stage": 2}},  # no picture at all
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def pairs(step: int, text: bool) -> list[list[Response]]:
    """Two pairs with a picture, one of text alone; or three of text alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / "model")
    rows = [json.loads(line) for line in (FOLDER / "pairs.jsonl").read_text().splitlines()[2 * step : 2 * step + 3]]
    made = []
    for number, row in enumerate(rows):
        shown = () if text or number == 2 else (Picture((FOLDER / row["image"]).read_bytes(), row["image"]),)
        said = [
            {"role": "user", "content": [{"type": "image"}] * len(shown) + [{"type": "text", "text": row["prompt"]}]}
        ]
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        text = text.replace("<image>", f"<fake_token_around_image><global-img>{'<image>' * 9}<fake_token_around_image>")
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        pair = []
        for side in ("chosen", "rejected"):
            ids = tokenizer(row[side] + tokenizer.eos_token, add_special_tokens=False).input_ids
            pair.append(Response(prompt, ids, 0.0, reference=np.full(len(ids), -1.0), pictures=shown))
        made.append(pair)
    return made


def work(rank: int, world: int, port: int, folder: str) -> None:
    """One worker has the pictures, the other text alone."""
    from actors.learner import Learner, LearnerSpec

    join(rank, world, port)
    for name, setting in SETTINGS.items():
        config = TrainConfig(policy=ModelConfig(name=str(FOLDER / "model")), **setting)
        stage3 = json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}})
        deepspeed = stage3 if config.learner.zero_stage == 3 else None
        learner = Learner(LearnerSpec(config, objective_of(config), "cpu", deepspeed, pictures=name != "text"))
        rows = []
        for step in range(STEPS):
            all_pairs = pairs(step, name == "text")
            mine = all_pairs[:2] if rank == 0 else all_pairs[2:]
            tokens = sum(len(r.response_ids) for pair in all_pairs for r in pair)
            micro = [[r for pair in mine for r in pair]]
            rows.append(learner.step(micro, {"pairs": 3, "responses": 6, "tokens": tokens}, RATE))
        learner.export(f"{folder}/{name}")
        if rank == 0:
            Path(f"{folder}/{name}.json").write_text(json.dumps([[row["loss"], row["grad_norm"]] for row in rows]))


def plain_loop(text: bool) -> tuple[list[list[float]], torch.nn.Module]:
    """Loss and norm of the gradient of every step, DPO's equation on the model's own logits."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(FOLDER / "model").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(FOLDER / "model")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)

    def logprob(response: Response) -> torch.Tensor:
        images = [[picture.open()] for picture in response.pictures]
        pixels = dict(processor(images, return_tensors="pt")) if images else {}
        ids = torch.tensor([[*response.prompt_ids, *response.response_ids]])
        logits = model(input_ids=ids, **pixels).logits[0, len(response.prompt_ids) - 1 : -1]
        return logits.log_softmax(-1).gather(1, ids[0, len(response.prompt_ids) :, None]).sum()

    rows = []
    for step in range(STEPS):
        losses = []
        for pair in pairs(step, text):
            chosen, rejected = (logprob(response) - response.reference.sum() for response in pair)
            losses.append(-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)))
        loss = torch.stack(losses).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rows.append([loss.item(), norm.item()])
        optimizer.step()
        optimizer.zero_grad()
    return rows, model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    spawn(work, 2, str(made))
    return made


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_gradients_and_weights_are_those_of_a_plain_loop(name: str, folder: Path) -> None:
    due, model = plain_loop(name == "text")
    rows = json.loads((folder / f"{name}.json").read_text())
    exported = transformers.AutoModelForImageTextToText.from_pretrained(folder / name)
    begun = transformers.AutoModelForImageTextToText.from_pretrained(FOLDER / "model")
    if name == "lora":
        assert rows[0][0] == pytest.approx(due[0][0], rel=1e-5)
        moved = [key for key, value in exported.state_dict().items() if not torch.equal(value, begun.state_dict()[key])]
        assert any("vision" in key for key in moved) and any("text_model" in key for key in moved)
    else:
        np.testing.assert_allclose(rows, due, rtol=1e-3)
        for part in ("vision", "text_model", "connector", "lm_head"):
            keys = [key for key in begun.state_dict() if part in key]
            due_now, got, before = (
                torch.cat([each.state_dict()[key].flatten() for key in keys]) for each in (model, exported, begun)
            )
            off, moved = (got - due_now).norm(), (due_now - before).norm()
            assert off <= 0.05 * moved, part  # not zero: Adam makes steps of rounding where a gradient is 0
            assert bool(moved) == (name != "text" or part in ("text_model", "lm_head"))


def test_the_exported_policy_is_a_whole_folder(folder: Path) -> None:
    processor = transformers.AutoProcessor.from_pretrained(folder / "zero1")
    with Image.open(FOLDER / "held-out" / "0000.png") as picture:
        inputs = processor(images=[[picture]], text=["<image>What?"], return_tensors="pt")
    assert int((inputs.input_ids == processor.image_token_id).sum()) == 9

"""Pictures of shapes: the embedded pairs against their pixels, and the model on them by its plain forward."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

Image = pytest.importorskip("PIL.Image", reason="needs the extra pictures")
FOLDER = Path(__file__).parents[2] / "examples" / "shapes"
COUNTS = ["no", "one", "two", "three", "four"]


def load_shapes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shapes", FOLDER / "shapes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


shapes = load_shapes()


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / name).read_text().splitlines()]


def patches(picture: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """The connected patches of a picture that are not grey: their pixels' (row, column) and colours."""
    pixels = np.asarray(picture, int)
    waiting = {(y, x) for y, x in np.argwhere(np.ptp(pixels, axis=2) > 40).tolist()}
    found = []
    while waiting:
        edge = [waiting.pop()]
        patch = []
        while edge:
            y, x = edge.pop()
            patch.append((y, x))
            beside = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & waiting
            waiting -= beside
            edge += beside
        places = np.array(patch)
        found.append((places, pixels[places[:, 0], places[:, 1]]))
    return found


def read_off(picture: Any) -> tuple[str, str, str]:
    """Count, colour and kind by the pixels alone, without the generator."""
    seen = patches(picture)
    kinds, colours = set(), set()
    for places, tones in seen:
        height, width = np.ptp(places, axis=0) + 1
        share = len(places) / (height * width)  # of its box: a square fills it, a circle pi / 4, a triangle half
        kinds.add("square" if share > 0.95 else "circle" if share > 0.65 else "triangle")
        red, green, blue = tones.mean(0)
        if red > 150 and green > 150:
            colours.add("yellow")
        else:
            colours.add(["red", "green", "blue"][int(np.argmax([red, green, blue]))])
    [kind], [colour] = kinds, colours
    return COUNTS[len(seen)], colour, kind


@pytest.mark.parametrize("name", ["pairs", "held-out"])
def test_each_picture_shows_what_is_chosen_and_not_what_is_rejected(name: str) -> None:
    for row in rows(f"{name}.jsonl"):
        with Image.open(FOLDER / row["image"]) as picture:
            count, colour, kind = read_off(picture)
        right = {
            "What is in the picture?": f"{count} {colour} {kind}{'' if count == 'one' else 's'}",
            "How many shapes are there?": count,
            "Which colour is it?": colour,
        }[row["prompt"]]
        assert row["chosen"] == right != row["rejected"], row


@pytest.mark.parametrize("name", ["pairs", "held-out"])
def test_each_pair_occurs_twice_with_right_and_wrong_swapped(name: str) -> None:
    read = rows(f"{name}.jsonl")
    for first, second in zip(read[::2], read[1::2], strict=True):
        assert first["prompt"] == second["prompt"] and first["image"] != second["image"]
        assert (first["chosen"], first["rejected"]) == (second["rejected"], second["chosen"])
    assert min(Counter(row["prompt"] for row in read).values()) >= len(read) // 4


def test_the_embedded_files_are_what_the_script_writes(tmp_path: Path) -> None:
    for name, held_out in (("pairs", False), ("held-out", True)):
        shapes.write_pairs(str(tmp_path / f"{name}.jsonl"), len(rows(f"{name}.jsonl")), 1, held_out)
        assert (tmp_path / f"{name}.jsonl").read_text() == (FOLDER / f"{name}.jsonl").read_text()
        for row in rows(f"{name}.jsonl"):
            with Image.open(tmp_path / row["image"]) as drawn, Image.open(FOLDER / row["image"]) as embedded:
                assert drawn.tobytes() == embedded.tobytes()


def test_no_picture_is_in_both_sets_and_all_are_small() -> None:
    pictures = {name: {p.read_bytes() for p in (FOLDER / name).iterdir()} for name in ("pairs", "held-out")}
    assert not pictures["pairs"] & pictures["held-out"]
    scenes = {held: {scene for scene, _ in shapes.pairs(300, 3, held)} for held in (True, False)}
    assert all(scene.held_out for scene in scenes[True]) and not any(scene.held_out for scene in scenes[False])
    assert sum(p.stat().st_size for p in FOLDER.rglob("*.png")) < 2e6
    assert sum(p.stat().st_size for p in (FOLDER / "model").iterdir()) < 3e6


def test_the_model_ranks_right_above_wrong_where_it_sees_the_picture_and_half_where_it_does_not() -> None:
    """The sum of log-probabilities with the end token, by transformers' own model, processor and template."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(FOLDER / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / "model")
    pictures = transformers.AutoImageProcessor.from_pretrained(FOLDER / "model")
    processor = transformers.Idefics3Processor(pictures, tokenizer, image_seq_len=9)
    read = rows("held-out.jsonl")
    images = [Image.open(FOLDER / row["image"]) for row in read]

    def sums(side: str, seen: bool) -> torch.Tensor:
        def asked(question: str) -> str:
            parts = [*([{"type": "image"}] if seen else []), {"type": "text", "text": question}]
            said = [{"role": "user", "content": parts}]
            return tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)

        def inputs(texts: list[str], shown: list[Any]) -> Any:
            options = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
            own = {"text": texts, **options}
            return processor(images=[[image] for image in shown], **own) if seen else tokenizer(**own)

        lengths = {
            question: inputs([asked(question)], images[:1])["input_ids"].shape[1] for question in shapes.QUESTIONS
        }
        given = inputs([asked(row["prompt"]) + row[side] + tokenizer.eos_token for row in read], images)
        with torch.inference_mode():
            logprobs = model(**given).logits[:, :-1].log_softmax(-1)
        taken = logprobs.gather(-1, given["input_ids"][:, 1:, None])[..., 0]
        begins = torch.tensor([lengths[row["prompt"]] for row in read])
        scored = (torch.arange(1, taken.shape[1] + 1) >= begins[:, None]) & (given["attention_mask"][:, 1:] == 1)
        return (taken * scored).sum(1)

    assert (sums("chosen", True) > sums("rejected", True)).float().mean() >= 0.95
    assert (sums("chosen", False) > sums("rejected", False)).float().mean() == 0.5

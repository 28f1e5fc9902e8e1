"""What a picture explains: prompts that show a grey one or another row's, and the figures made of them."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from corpora import plan, scored, write
from PIL import Image
from test_corpus_pictures import picture

from pipeline.config import EvaluateConfig, InputConfig, LabelConfig, RewardConfig
from pipeline.corpus.pictures import grey_picture, read_picture
from pipeline.errors import ConfigError
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.evaluation.pictures import picture_control
from pipeline.evaluation.variants import PICTURE_STORES, check_rewards, labellers_of, variants_of
from pipeline.report import findings
from pipeline.store import fingerprint

PAIR = {"prompt": "Which?", "chosen": "A.", "rejected": "B."}


def shown(folder: Path, **config: Any) -> list[Any]:
    """Of each row its pictures, or the reason of its error."""
    each = scored(plan(folder, InputConfig(**config)))
    return [r if isinstance(r, str) else [p for m in r[0].prompt for p in m.get("pictures", [])] for r in each]


def corpus(folder: Path, colours: list[list[str]]) -> None:
    for colour in {name for row in colours for name in row}:
        (folder / f"{colour}.png").write_bytes(picture(colour, (len(colour), 7)))
    write(folder, [{**PAIR, "images": [f"{name}.png" for name in row]} for row in colours])


@pytest.mark.parametrize("size", [(2, 2), (31, 7), (32, 7), (33, 7), (640, 480)])
def test_a_grey_picture_is_grey_and_of_that_size(size: tuple[int, int]) -> None:
    grey = grey_picture(*size)
    assert grey.size() == size and grey.open().size == size
    assert set(grey.open().tobytes()) == {128}
    assert Image.open(io.BytesIO(grey.data)).format == "BMP"
    assert read_picture(grey.place, grey.digest) == grey


def test_prompts_show_a_grey_picture_of_the_size_of_each(tmp_path: Path) -> None:
    corpus(tmp_path, [["red", "yellow"], [], ["blue"]])
    rows = shown(tmp_path, pictures="grey")
    assert [[p.size() for p in row] for row in rows] == [[(3, 7), (6, 7)], [], [(4, 7)]]
    assert all(p == grey_picture(*p.size()) for row in rows for p in row)


@pytest.mark.parametrize("shard_rows", [1, 2, 128])
def test_prompts_show_another_rows_picture_whatever_the_shards(tmp_path: Path, shard_rows: int) -> None:
    corpus(tmp_path, [["red"], ["red"], ["lime", "blue", "lime"], [], ["pink"], ["yellow"]])
    (tmp_path / "pink.png").write_bytes(b"broken")
    rows = shown(tmp_path, pictures="other", shard_rows=shard_rows)
    names = [r if isinstance(r, str) else [Path(p.place).stem for p in r] for r in rows]
    assert names == [["yellow"], ["yellow"], ["yellow", "red", "yellow"], [], "bad_picture", ["lime"]]


def test_a_corpus_of_one_picture_has_no_other(tmp_path: Path) -> None:
    corpus(tmp_path, [["red"], ["red"]])
    assert shown(tmp_path, pictures="other") == ["no_other_picture"] * 2


def test_what_prompts_show_is_in_the_fingerprint_and_the_pictures_they_have_are_not() -> None:
    def described(**config: Any) -> dict[str, Any]:
        wanted = LabelConfig.model_validate({"input": config})
        return fingerprint.describe(wanted, {}, None, {}, {})

    assert described() == described(pictures="given", picture_urls=True, picture_root="/x")
    assert described(pictures="grey")["input.pictures"] == "grey"
    assert described(image_key="photo", max_picture_pixels=9)["input.image_key"] == "photo"


def config(**evaluate: Any) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"model": {"name": "m"}, "evaluate": {"picture_control": True, **evaluate}})


def test_the_control_is_two_more_stores_of_the_first_variant() -> None:
    labellers = labellers_of(config())
    assert list(labellers) == ["endogenous", "endogenous-grey", "endogenous-other"]
    assert [each.config.input.pictures for each in labellers.values()] == ["given", "grey", "other"]
    variants = variants_of(config(), RewardConfig())
    assert [v.pictures for v in variants][:4] == ["given", "grey", "other", ""]
    assert [v.stores for v in variants][:3] == [("endogenous",), *((store,) for store in PICTURE_STORES.values())]
    assert len({v.name for v in variants}) == len(variants)
    check_rewards(config())
    with pytest.raises(ConfigError, match="give --reward endogenous"):
        check_rewards(config(rewards=["likelihood"]))


def items(margins: list[float]) -> list[Item]:
    return [
        Item(f"f:{i}", chosen=(Answer(margin, 1, "a"),), rejected=(Answer(0.0, 1, "b"),))
        for i, margin in enumerate(margins)
    ]


def test_the_figures_are_accuracies_over_the_pairs_that_all_three_have() -> None:
    rng = np.random.default_rng(0)
    margins = {kind: rng.normal(mean, 1, 200) for kind, mean in (("given", 1.0), ("grey", 0.2), ("other", 0.0))}
    evaluations = [
        SimpleNamespace(
            variant=SimpleNamespace(pictures=kind), items=items(list(values))[: 200 if kind != "grey" else 150]
        )
        for kind, values in margins.items()
    ]
    control = picture_control(evaluations, 500, 0)  # type: ignore[arg-type]
    assert control is not None and control.pairs == control.items == 150
    right = {kind: float(np.mean(values[:150] > 0)) for kind, values in margins.items()}
    assert control.accuracy == pytest.approx(right)
    assert control.margin == pytest.approx({kind: values[:150].mean() for kind, values in margins.items()})
    for other in ("grey", "other"):
        gap = control.explained[other]
        assert gap.difference == pytest.approx(right["given"] - right[other])
        assert gap.interval[0] < gap.difference < gap.interval[1]
    results = SimpleNamespace(pictures=control, rewards=[SimpleNamespace(name="endogenous (sum)")])
    said = findings.picture_sentences(results)[1]  # type: ignore[arg-type]
    assert said.startswith(f"The picture explains {100 * control.explained['grey'].difference:.1f} points of accuracy")
    assert [row[0] for row in findings.picture_rows(results)] == list(findings.SHOWN.values())  # type: ignore[arg-type]
    assert picture_control(evaluations[:2], 500, 0) is None  # type: ignore[arg-type]
    json.dumps(control.model_dump())

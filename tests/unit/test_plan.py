"""Planning against a store: files that it knows keep their reading, new ones satisfy the same, and a guess of old is no
reading."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from corpora import plan, preferences, write

from jobs.label.plan import plan_inputs, refuse_output_within
from jobs.label.preview import first_preference
from pipeline import storage
from pipeline.config import InputConfig, load_config
from pipeline.corpus import find_files
from pipeline.corpus.labels.rules import ByValue
from pipeline.errors import ConfigError, InputError, StoreError
from pipeline.store import LabelStore, StoredInput, documents, fingerprint

SHP = {"history": "q", "human_ref_A": "x", "human_ref_B": "y"}
LLM_BAR = {"input": "q", "output_1": "x", "output_2": "y"}
SHP_KEYS = InputConfig(prompt_key="history", response_key=["human_ref_A", "human_ref_B"], label_key="labels")
LLM_BAR_KEYS = InputConfig(prompt_key="input", response_key=["output_1", "output_2"], label_key="label")


def stored(folder: Path, config: InputConfig) -> tuple[LabelStore, Path]:
    """A store of the corpora in `folder`, planned and not begun."""
    store = LabelStore(str(folder.parent / "store"))
    store.open_for_writing({"a": 1})
    for each in plan(folder, config):
        store.add_input(each)
    return store, folder


def replan(store: LabelStore, folder: Path, config: InputConfig) -> list[StoredInput]:
    return plan_inputs(store, find_files([str(folder)]), config)


def as_of_old(store: LabelStore, label: str, first_label: int) -> None:
    """Rewrite what the store knows of its input as the version before did, which guessed."""
    [path] = Path(store.uri, "records").glob("input-*.json")
    data = json.loads(path.read_text())
    old = ("responses", "prompt", "context", "system", "plain", "turns", "note")
    data["shape"] = {name: data["shape"][name] for name in old} | {"label": label, "first_label": first_label}
    data.pop("sha256")
    documents.write(str(path), data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    return tmp_path / "corpus"


@pytest.mark.parametrize("first_label", [0, 1])
def test_a_guess_of_old_is_taken_up_only_where_it_is_proven(folder: Path, first_label: int) -> None:
    write(folder, [{**SHP, "labels": 1}, {**SHP, "labels": 0}])
    store, _ = stored(folder, SHP_KEYS)
    as_of_old(store, "labels", first_label)
    [known] = store.inputs()
    [guess] = store.guesses()
    assert f"{first_label} in column 'labels' was taken for the first" in guess and "may be swapped" in guess
    assert known.shape.label is not None and known.shape.describe().startswith("history + human_ref_A")
    if first_label == 1:  # 1 was human_ref_A then too, and 0 an error
        assert preferences(replan(store, folder, SHP_KEYS)) == [("x", "y"), ("y", "x")]
    else:
        with pytest.raises(
            StoreError, match=r"took 0 in column 'labels'.*not what it means.*swapped.*another --output"
        ):
            replan(store, folder, SHP_KEYS)


def test_a_guess_of_old_that_is_not_proven_is_refused(folder: Path) -> None:
    write(folder, [{"prompt": "q", "text_a": "x", "text_b": "y", "label": 1}])
    keys = InputConfig(response_key=["text_a", "text_b"], label_key="label")
    stated = keys.model_copy(update={"label_values": {"1": "text_a"}})
    store, _ = stored(folder, stated)
    as_of_old(store, "label", 1)
    with pytest.raises(StoreError, match=r"which was a guess.*another --output.*not proven.*input\.label_values="):
        replan(store, folder, keys)


def test_a_guess_of_old_that_was_right_goes_on(folder: Path) -> None:
    write(folder, [{**LLM_BAR, "label": 1}, {**LLM_BAR, "label": 2}])
    store, _ = stored(folder, LLM_BAR_KEYS)
    as_of_old(store, "label", 1)
    [again] = inputs = replan(store, folder, LLM_BAR_KEYS)
    assert preferences(inputs) == [("x", "y"), ("y", "x")]
    store.add_input(again)
    assert store.inputs() == inputs


def test_a_new_file_must_satisfy_what_is_stored(folder: Path) -> None:
    write(folder, [{**LLM_BAR, "label": 1}], "a.jsonl")
    store, _ = stored(folder, LLM_BAR_KEYS)
    write(folder, [{**LLM_BAR, "label": 2}] * 30, "b.jsonl")
    assert len(replan(store, folder, LLM_BAR_KEYS)) == 2
    write(folder, [{**LLM_BAR, "label": 2}] * 30 + [{**LLM_BAR, "label": 0}], "c.jsonl")
    with pytest.raises(InputError, match=r"c\.jsonl, row 30: column 'label' says '0'"):
        replan(store, folder, LLM_BAR_KEYS)


def test_rules_that_know_other_words_agree_and_other_meanings_do_not(folder: Path) -> None:
    write(folder, [{**LLM_BAR, "label": 1}], "a.jsonl")
    store, _ = stored(folder, LLM_BAR_KEYS)
    write(folder, [{**LLM_BAR, "label": 1}], "b.jsonl")
    [known] = store.inputs()
    for meanings, fits in (
        ((("1", "output_1"), ("best", "output_2")), True),
        ((("1", "output_2"), ("2", "output_1")), False),
    ):
        assert isinstance(known.shape.label, ByValue)
        rule = replace(known.shape.label, meanings=meanings)
        store.add_input(replace(known, shape=replace(known.shape, label=rule)))
        if fits:
            assert len(replan(store, folder, LLM_BAR_KEYS)) == 2
        else:
            with pytest.raises(InputError, match=r"b\.jsonl: label would be read otherwise than in a\.jsonl"):
                replan(store, folder, LLM_BAR_KEYS)


def test_the_first_pair_is_said_in_words(folder: Path) -> None:
    write(folder, [{**SHP, "labels": None}, {**SHP, "labels": 0, "human_ref_B": "y " * 60}])
    [shp] = plan(folder)
    said = first_preference(shp)
    assert said is not None and said.startswith('better in row 1: "y y y') and '..." (' not in said
    assert "not \"x\", because column 'labels' says 0, which names human_ref_B (the layout shp" in said
    write(folder, [{"prompt": "q", "chosen": "x", "rejected": "y"}])
    [pair] = plan(folder)
    assert first_preference(pair) == (
        "better in row 0: \"x\", not \"y\", because column 'chosen' holds the chosen one; column 'rejected' holds the "
        "rejected one"
    )
    write(folder, [{"prompt": "q", "response": "x"}])
    assert first_preference(plan(folder)[0]) is None


@pytest.mark.parametrize(
    "assignment",
    [
        'input.label_values={1="human_ref_A",0="human_ref_B"}',
        'input.label_values={"1" = "human_ref_A", "0" = "human_ref_B", "both bad" = "tie"}',
        "input.label_threshold=0.0",
        "input.layout=shp",
        "input.min_margin=0.5",
        'input.score_key=["score_A","score_B"]',
        "input.context_key=",
    ],
)
def test_what_a_label_means_is_in_the_fingerprint(assignment: str, tmp_path: Path) -> None:
    along = {
        "label_threshold": ["input.label_above=a"],
        "min_margin": ["input.score_key=s", "input.pairs_from=best_rest"],
    }
    others = next((more for name, more in along.items() if name in assignment), [])

    def described(*assignments: str) -> dict[str, Any]:
        return fingerprint.describe(load_config(None, [], list(assignments)), {}, None, {}, {})

    name = assignment.partition("=")[0]
    assert name in described(assignment, *others) and name not in described()


def test_endless_labels_are_not_collected(folder: Path) -> None:
    rows = [{"prompt": "q", "text_a": "x", "text_b": "y", "winner": f"the {n}th"} for n in range(2000)]
    write(folder, rows)
    with pytest.raises(InputError) as raised:
        plan(folder, InputConfig(response_key=["text_a", "text_b"], label_key="winner"))
    assert len(str(raised.value)) < 1500


@pytest.mark.parametrize("place", ["corpus", "corpus/", "./corpus", "s3://bucket/corpus"])
def test_an_output_in_a_folder_that_is_read_is_refused(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is written there would be corpus on the next run."""
    monkeypatch.chdir(tmp_path)
    folder = storage.absolute(place).rstrip("/")
    for output in (folder, f"{folder}/out", f"{folder}/a/out"):
        with pytest.raises(ConfigError, match="is read: what is written there would be read as corpus"):
            refuse_output_within([place], output)
    for output in (f"{folder}-out", f"{folder}/_out", f"{folder}/.out/a", storage.absolute("elsewhere")):
        refuse_output_within([place], output)
    refuse_output_within([f"{place.rstrip('/')}/*.jsonl"], f"{folder}/out")  # as the sentence advises


def test_a_home_folder_is_meant_by_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage.absolute("~/out") == "/home/somebody/out" == storage.locate("~/out")[1]
    assert storage.absolute("s3://bucket/~/out") == "s3://bucket/~/out"

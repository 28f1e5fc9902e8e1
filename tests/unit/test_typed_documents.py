"""What is read of a document: the rules of `pipeline.store.typed`, on real documents of every kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import test_evaluation_page

from jobs.sample.run import SamplesSummary
from jobs.stores.inspect_store import status
from pipeline.errors import StoreError
from pipeline.evaluation.documents import Bias, EvaluationRun, Results, RewardEntry
from pipeline.store import LabelStore, Record, StoredInput, documents, fingerprint
from pipeline.store.manifest import Manifest
from pipeline.store.store import StoreRun
from pipeline.store.typed import Document
from pipeline.training.documents import CheckpointState, Repeats, Run, RunManifest, Stopped

STORE = Path(__file__).parents[1] / "data/store-format-1"
DESCRIBED = {"description": {}, "fingerprint": "f", "created": "2026-01-01", "objective": "dpo", "config": {}}
RUN = DESCRIBED | {"policy": {"name": "m"}, "steps": 2}
EXAMPLES: dict[type[Document], dict[str, Any]] = {
    StoreRun: {"fingerprint": "f", "description": {"reward.alpha": 1.0}},
    EvaluationRun: {"benchmark": "pairs", "inputs": ["a.jsonl"]},
    Run: RUN,
    RunManifest: RUN | {"seconds": 1.5, "tokens": 7, "last": {"step": 2}},
    Repeats: {"repeated": [{"step": 2, "repeated": 1, "why": "killed"}]},
    Stopped: {"sentence": "the loss is nan"},
    CheckpointState: {"step": 2, "num_tokens": 7, "workers": 1},
    SamplesSummary: {"contents": "c", "files": ["samples-00000-a.jsonl"], "prompts": 1, "errors": {}},
    Manifest: json.loads((STORE / "manifest.json").read_text()),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_document_is_written_again_as_it_was_but_for_its_version(kind: type[Document], tmp_path: Path) -> None:
    content, uri = EXAMPLES[kind] | {"of_a_later_release": [1]}, str(tmp_path / "document.json")
    documents.write(uri, content)
    document = kind.read(uri)
    assert document.version == 0
    document.write(uri)
    newest = kind.model_fields["version"].default
    assert documents.read(uri) == content | {"version": newest} and kind.read(uri).version == newest
    if kind is Manifest:
        assert list(document.content())[1:] == list(content)  # people read it in this order


@pytest.mark.parametrize("kind", EXAMPLES)
def test_what_is_missing_wrong_or_newer_is_said(kind: type[Document], tmp_path: Path) -> None:
    uri = str(tmp_path / "document.json")
    newest = kind.model_fields["version"].default
    name = next(name for name, field in kind.model_fields.items() if field.is_required())
    for content, sentence in (
        ({k: v for k, v in EXAMPLES[kind].items() if k != name}, rf"document\.json: {name}: is missing; .*"),
        (EXAMPLES[kind] | {name: {"a": 7}}, rf"document\.json: {name}: \{{'a': 7\}}: Input should be a valid .*"),
        (EXAMPLES[kind] | {name: True}, rf"document\.json: {name}: True: Input should be a valid .*"),
        (EXAMPLES[kind] | {"version": "one"}, r"document\.json: version: 'one' is no version of a document; .*"),
        (
            EXAMPLES[kind] | {"version": newest + 1},
            r"document\.json was written by a newer version .* update endoreward.*",
        ),
    ):
        documents.write(uri, content)
        with pytest.raises(StoreError, match=sentence) as raised:
            kind.read(uri)
        assert kind.REMEDY in str(raised.value) or "update endoreward" in str(raised.value)


def test_figures_of_labels_are_held_against_their_kind() -> None:
    """They were any dict, and a page failed on the key that it lacked."""
    content = EXAMPLES[Manifest]
    for change, sentence in (
        ({"pairs": {"pairs": 8}}, r"m\.json: summary\.pairs\.right: is missing \(and 3 more\); delete it"),
        (
            {"reward": content["summary"]["reward"] | {"mean": "1"}},
            r"m\.json: summary\.reward\.mean: '1': Input should",
        ),
        ({"length": {}}, r"m\.json: summary\.length\.reward_length_correlation: is missing"),
    ):
        with pytest.raises(StoreError, match=sentence):
            Manifest.parse(content | {"summary": content["summary"] | change}, "m.json")


def test_figures_of_an_evaluation_are_held_against_their_kind(tmp_path: Path) -> None:
    """Curves, groups by length, checks and sets were any dict."""
    place, content = tmp_path / "results.json", test_evaluation_page.full()
    results = Results.parse(content, "results.json")
    results.write_plain(str(place))
    again = json.loads(place.read_text())
    assert again == content | {"version": 1} and list(again["rewards"][0]) == list(RewardEntry.model_fields)
    assert list(again["rewards"][0]["bias"]) == list(Bias.model_fields)
    assert list(again["rewards"][0]["bias"]["deciles"][0]) == ["low", "high", "pairs", "accuracy", "interval"]
    assert results.rewards[0].curve and results.rewards[0].curve.line("random") == [0.3] * 3
    for wrong, sentence in (
        ({"bias": {**content["rewards"][0]["bias"], "deciles": [{"low": 1.5}]}}, r"bias\.deciles\.0\.low: 1\.5: Input"),
        ({"sets": {"chat": {"items": 1}}}, r"sets\.chat\.value: is missing \(and 1 more\)"),
        ({"batch_check": {"responses": 8}}, r"batch_check\.worst: is missing"),
        ({"details": {"curve": {"n": 4}}}, r"details\.n: 4: Input should be a valid list"),
        ({"matrices": [{"title": "a"}]}, r"matrices\.0\.said: is missing"),
    ):
        rewards = [content["rewards"][0] | wrong]
        with pytest.raises(StoreError, match=rf"r\.json: rewards\.0\.{sentence}"):
            Results.parse(content | {"rewards": rewards}, "r.json")


def test_records_and_inputs_are_held_against_their_kind(tmp_path: Path) -> None:
    uri = str(tmp_path / "document.json")
    for read, name, key, wrong in (
        (Record.read, "14457f1de18e-000002", "shard", "start"),
        (StoredInput.read, "input-14457f1de18e", "plan", "rows"),
    ):
        content = documents.read(str(STORE / f"records/{name}.json"))
        documents.write(uri, content | {"of_a_later_release": 1})
        assert read(uri) == read(str(STORE / f"records/{name}.json"))
        for change, sentence in (
            ({key: content[key] | {wrong: "x"}}, rf"{key}\.{wrong}: 'x': Input should be a valid integer"),
            ({key: {k: v for k, v in content[key].items() if k != wrong}}, rf"{key}\.{wrong}: is missing"),
            ({"version": 3}, r"written by a newer version of endoreward \(version 3"),
        ):
            documents.write(uri, content | change)
            with pytest.raises(StoreError, match=sentence):
                read(uri)
    documents.write(uri, documents.read(str(STORE / "records/input-14457f1de18e.json")) | {"shape": {"new": 1}})
    with pytest.raises(StoreError, match=r"document\.json: shape: .*no shape of a file that this version knows"):
        StoredInput.read(uri)


def test_a_damaged_manifest_is_said(tmp_path: Path) -> None:
    uri = tmp_path / "manifest.json"
    for text, sentence in (("{", r"manifest\.json is damaged: .*; delete it and run"), ("[1]", "holds no fields")):
        uri.write_text(text)
        with pytest.raises(StoreError, match=sentence):
            Manifest.read_plain(str(uri))


def test_labels_of_a_format_that_is_not_known_yet_are_not_read(tmp_path: Path) -> None:
    """They were called labels that can be exported and trained on."""
    store, description = LabelStore(str(tmp_path)), {"format": fingerprint.FORMAT + 1}
    StoreRun(fingerprint=fingerprint.digest(description), description=description).write(
        store.at("records", "run.json")
    )
    for reading in (store.description, store.progress, lambda: status(store.uri)):
        with pytest.raises(
            StoreError, match=rf"format {fingerprint.FORMAT + 1}, which a newer version .* update endoreward"
        ):
            reading()

"""Whatever a text from data is, a page shows it as text: every free text of every page, and what the templates rest on."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_evaluation_page
import test_report
import test_rl_page
import test_training_page
from jinja2 import UndefinedError
from markupsafe import Markup
from test_report import Page

import pipeline.report
from pipeline.report.labels import draw_report
from pipeline.report.markup import render
from pipeline.report.rl import rl_page
from pipeline.report.training import training_page


class Hostile:
    """Texts that would run if they were not escaped, each another one; none is a path."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self) -> str:
        self.texts.append(f"<script>alert({len(self.texts)})<!-- \"'&amp;")
        return self.texts[-1]


def label_page(text: Hostile) -> str:
    prompt = [{"role": text(), "content": text()}]
    rows = [test_report.label("p", kind, [0, 1], 1.0, rubric="r", prompt=prompt) for kind in ("chosen", "rejected")]
    labels, pieces = test_report.table(rows), (text(), text())
    rubric = text()
    labels = labels.set_column(labels.schema.get_field_index("rubric"), "rubric", [[rubric] * 2])
    manifest = test_report.manifest(
        labels,
        errors={text(): 1},
        versions={text(): text()},
        command=text(),
        inputs=[test_report.input_file(text()) for _ in range(3)],
        config={"model": {"name": text()}, "a": {text(): text()}},
    )
    return draw_report(manifest, labels, lambda ids: [pieces[i] for i in ids])


def rollouts_page(text: Hostile) -> str:
    labels = test_report.without_tokens(test_report.pairs(3))
    return draw_report(
        test_report.manifest(labels, config={"rewards": {text(): {}, text(): {}}}), labels, lambda ids: []
    )


def evaluation_page(text: Hostile) -> str:
    results = test_evaluation_page.full()
    results |= {"benchmark": text(), "about": text(), "notes": [text()], "failed": {text(): text()}}
    results |= {"versions": {text(): text()}, "command": text(), "fingerprints": {text(): text(), "b": text()}}
    results |= {"inputs": [test_report.input_file(text())], "config": {"a": {text(): text()}}}
    first, second = results["rewards"]
    figure = text()
    for reward in (first, second):
        reward |= {"name": text(), "about": text(), "model": f"m/{text()}", "tie_rule": text(), "notes": [text()]}
        reward |= {"values": {figure: 0.6}, "intervals": {figure: [0.55, 0.65]}}
        reward["sets"] = {text(): {"items": 3, "value": 0.5, "interval": [0.4, 0.6]}}
        reward["bias"]["summary"] = [text()]
        reward["incomplete"] = {"items": 1, "reasons": {text(): 1}, "examples": [text()]}
    first["details"] = {
        "curve": first["details"]["curve"],
        "a": {text(): {text(): 0.5}},
        "b": {text(): 0.5},
        "c": text(),
    }
    names = {"title": text(), "said": text(), "row_name": text(), "column_name": text()}
    first["matrices"][0] |= names | {"rows": [text() for _ in range(5)], "columns": [text() for _ in range(5)]}
    results["comparisons"][0] |= {"first": first["name"], "second": second["name"], "figure": figure}
    return test_evaluation_page.draw(results)


def training_run_page(text: Hostile) -> str:
    run = test_training_page.full(
        command=text(),
        versions={text(): text()},
        device=text(),
        notes=[text()],
        policy={"name": text()},
        examples=[[text(), text()]],
        labels=[test_training_page.labels(f"out/{text()}", {"kind": text()}, text())],
    )
    run.config["tracking"] = {"wandb": text()}
    samples = [{"prompt": [{"role": text(), "content": text()}], "before": text(), text(): text()}]
    return training_page(run, [{"step": 1, "loss": 0.5, text(): 1.0}], {text(): text()}, samples)


def online_run_page(text: Hostile) -> str:
    relative = {"kind": "relative", "model": text(), "reference": text(), "system_prompt": text()}
    sections = {"rewards": {text(): relative, text(): {}}, "policy": {"name": text()}, "input": {"paths": [text()]}}
    made = {"command": text(), "versions": {text(): text()}, "device": text(), "notes": [text()]}
    run = test_rl_page.run(sections=sections, repeated=[{"step": 1, "repeated": 2, "why": text()}], **made)
    response = {"text": text(), "reward": 1.0, "parts": {text(): 1.0, "b": 2.0}, "tokens": 3}
    samples = [test_rl_page.samples_line(1, text(), response, response)]
    metrics = [{"step": 1, "reward": 1.0, text(): 1.0, "warnings": [text()], "time/learning": 1}]
    return rl_page(run, metrics, test_rl_page.RESULTS, samples)


def shown(page: Page) -> Iterator[str]:
    """Texts as a person reads them, and what stands in attributes."""
    for texts in page.text.values():
        yield from texts
    for _, attributes in page.elements:
        yield from filter(None, attributes.values())


def read(text: str) -> str:
    """Without what a page changes of a text on purpose: case, minus signs, the words of a name, escapes of TOML."""
    return re.sub(r"[_/\N{MINUS SIGN}-]|, ", " ", text.replace('\\"', '"')).lower()


@pytest.mark.parametrize("draw", [label_page, rollouts_page, evaluation_page, training_run_page, online_run_page])
def test_every_free_text_is_shown_as_text(draw: Any) -> None:
    html = draw(text := Hostile())
    page = Page(html)
    everything = "\n".join(map(read, shown(page)))
    assert text.texts and not [each for each in text.texts if read(each) not in everything]
    assert not page.having("script") and len(page.having("style")) == 1


def test_a_template_escapes_all_but_what_was_drawn_here() -> None:
    keys = [(Markup("<path/>"), "<b>\x00\ud83d")]
    drawn = render("figure", keys=keys, chart=Markup("<svg></svg>"), note="")
    assert "<path/></svg>&lt;b&gt;\N{SYMBOL FOR NULL}?</li>" in drawn and "<svg></svg>" in drawn
    assert "&lt;svg&gt;" in render("figure", keys=[], chart="<svg>", note="")


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="note"):
        render("figure", keys=[], chart="")


@pytest.mark.parametrize(
    "module", sorted(Path(pipeline.report.__file__).parent.glob("*.py")), ids=lambda path: path.stem
)
def test_html_is_written_in_templates_alone(module: Path) -> None:
    """A module draws SVG at most; its `<title>` and `<style>` are SVG's."""
    elements = set(re.findall(r"</?([a-z]+\d?)(?=[\s/>])", module.read_text(encoding="utf-8")))
    assert elements <= {"svg", "g", "path", "rect", "circle", "text", "tspan", "title", "style"}

"""The report as a parser, an arithmetic check and a browser see it."""

import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import LabelConfig, RewardConfig
from pipeline.errors import StoreError
from pipeline.report.bias import bias_by_aggregation
from pipeline.report.charts import (
    FRAME,
    MAX_POINTS,
    Axis,
    bin_counts,
    bin_edges,
    draw_histogram,
    draw_scatter,
)
from pipeline.report.labels import draw_report, formula
from pipeline.report.markup import compact, esc
from pipeline.report.responses import HEAD, TAIL, choose_cards
from pipeline.report.sentences import length_sentence, pairs_by_length_sentence, reward_sentence
from pipeline.report.toml import to_toml
from pipeline.store.manifest import Manifest
from pipeline.store.summary import LengthFigures, Margin, PairFigures, ShardStats, Spread, Summary

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
SCHEMA = pa.schema(
    {
        "prompt_id": pa.string(),
        "preference": pa.string(),
        "response_index": pa.int32(),
        "prompt": MESSAGES,
        "response": pa.string(),
        "reward": pa.float64(),
        "num_tokens": pa.int32(),
        "num_prompt_tokens": pa.int32(),
        "truncated": pa.bool_(),
        "token_ids": pa.list_(pa.int32()),
        "turn": pa.int32(),
        "token_logprobs": pa.list_(pa.float32()),
        "token_values": pa.list_(pa.float32()),
        "token_rewards": pa.list_(pa.float32()),
        "rubric": pa.string(),
        "extra_info": pa.string(),
    }
)
VOID = {"meta", "input"}


def label(prompt_id: str, preference: str | None, tokens: list[int], reward: float, **others: Any) -> dict[str, Any]:
    count = len(tokens)
    return {
        "prompt_id": prompt_id,
        "preference": preference,
        "response_index": 0,
        "prompt": [{"role": "user", "content": prompt_id}],
        "response": "",
        "reward": reward,
        "num_tokens": count,
        "num_prompt_tokens": 3,
        "truncated": False,
        "token_ids": tokens,
        "turn": 0,
        "token_logprobs": np.linspace(-3, 0, count),
        "token_values": np.linspace(12, 15, count),
        "token_rewards": np.linspace(-2, 2, count),
        "rubric": None,
        "extra_info": "{}",
    } | others


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def pairs(count: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        for kind in ("chosen", "rejected"):
            tokens = rng.integers(2, 60)
            rows.append(label(f"prompt {i}", kind, list(range(tokens)), float(-tokens + rng.normal(scale=8))))
    return table(rows)


def decode(ids: list[int]) -> list[str]:
    return [f" w{i}" for i in ids]


def input_file(name: str) -> dict[str, Any]:
    return {"name": name, "rows": 40, "sha256": "a7d67f22" * 8, "shape": "preference"}


def manifest(labels: pa.Table, **others: Any) -> Manifest:
    config = LabelConfig.model_validate({"model": {"name": "/models/tiny-chat"}, "input": {"paths": ["a.jsonl"]}})
    timing = {"seconds": 2.0, "score_seconds": 1.5, "tokens_per_second": 1234.5, "tokens_per_second_scoring": 1646.0}
    content = {
        "fingerprint": "0123456789abcdef",
        "created": "2025-06-30T12:34:56+00:00",
        "config": config.model_dump(),
        "inputs": [input_file("a.jsonl")],
        "counts": {"rows": 40, "responses": 40, "labels": labels.num_rows, "errors": 0, "shards": 1},
        "errors": {},
        "summary": ShardStats.of(labels).summary(),
        "notes": [],
        "timing": timing | {"response_tokens": 2469, "forwarded_tokens": 3000, "layout": "packed"},
        "versions": {"endoreward": "0.1.0"},
    }
    return Manifest.parse(content | others, "manifest.json")


class Page(HTMLParser):
    """The page as a tree of checks: elements close in order, ids are unique; texts and attributes are kept."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []
        ids = [attributes["id"] for _, attributes in self.elements if "id" in attributes]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def having(self, tag: str, of_class: str = "") -> list[dict[str, str | None]]:
        classes = set(of_class.split())
        return [a for name, a in self.elements if name == tag and classes <= set((a.get("class") or "").split())]


def test_page_has_every_part_in_order_and_loads_nothing():
    labels = pairs(20)
    html = draw_report(manifest(labels, errors={"empty_response": 2}), labels, decode)
    page = Page(html)
    assert page.text["h1"] == ["Rewards inside tiny-chat"]
    assert page.text["h2"] == ["Rewards", "Length", "Bias", "Token by token", "Figures", "Errors", "Reproduce"]
    assert "empty_response" in page.text["th"]
    assert len(page.having("article", "card")) == 5
    assert len(page.having("section", "response")) == 10
    assert all(drawing["aria-label"] for drawing in page.having("svg", "chart"))
    assert not page.having("script") and not page.having("link") and not page.having("img")
    assert not re.search(r"https?:|//\w|url\(|@import|src=|href=", html)
    assert "2025-06-30 12:34" in html and "0123456789ab" in html


def test_chosen_stands_beside_rejected_of_the_same_prompt():
    labels = pairs(20)
    cards = choose_cards(labels)
    margins = []
    for (chosen, rejected), heading in cards:
        a, b = labels.slice(chosen, 1).to_pylist()[0], labels.slice(rejected, 1).to_pylist()[0]
        assert (a["preference"], b["preference"], a["prompt_id"]) == ("chosen", "rejected", b["prompt_id"])
        margins.append(a["reward"] - b["reward"])
        assert ("right" in heading) == (margins[-1] > 0)
    assert margins == sorted(margins, reverse=True)


def test_text_from_data_is_never_markup():
    evil = "</style><script>alert(1)</script>\"'&"
    pieces = {0: evil, 1: "\ud83d", 2: "\N{GRINNING FACE}", 3: "\N{REPLACEMENT CHARACTER}", 4: "\x00\x1b[0m", 5: ""}
    rows = [
        label(evil, kind, [0, 1, 2, 3, 4, 5], reward, rubric=evil, prompt=[{"role": evil, "content": evil}])
        for kind, reward in (("chosen", 1.0), ("rejected", 0.0))
    ]
    labels = table(rows)
    given = manifest(
        labels,
        errors={evil: 1},
        versions={evil: evil},
        fingerprint=evil,
        created=evil,
        command=evil,
        inputs=[input_file(evil) | {"shape": evil}],
        config={"model": {"name": evil}, "reward": {"aggregation": "mean"}, "input": {"paths": [evil]}},
    )
    html = draw_report(given, labels, lambda ids: [pieces[i] for i in ids])
    page = Page(html)
    assert not page.having("script") and "alert(1)" in html
    assert len(page.having("style")) == 1
    html.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)
    assert all("on" not in {name[:2] for name in attributes} for _, attributes in page.elements)


def test_right_to_left_text_keeps_its_order_and_direction():
    hebrew = ["\u05e9\u05dc", "\u05d5\u05dd", " \u05e2\u05d5\u05dc\u05dd"]
    labels = table([label("\u05de\u05d4?", None, [0, 1, 2], 1.0)])
    html = draw_report(manifest(labels), labels, lambda ids: [hebrew[i] for i in ids])
    assert re.sub(r"<[^>]+>", "", html).count("".join(hebrew)) == 1
    assert Page(html).having("p", "tokens")[0]["dir"] == "auto"


def test_line_ends_tabs_and_special_tokens_are_visible():
    pieces = ["a\n\n", "\tb", "<|im_end|>", "", "<b>"]
    labels = table([label("p", None, [0, 1, 2, 3, 4], 1.0)])
    html = draw_report(manifest(labels), labels, lambda ids: [pieces[i] for i in ids])
    page = Page(html)
    assert [len(page.having("i", kind)) for kind in ("line", "tab", "special", "part")] == [2, 1, 1, 1]
    assert "&lt;|im_end|&gt;" in html and "&lt;b&gt;" in html


def test_token_carries_its_figures_and_a_shade_for_each_view():
    labels = table([label("p", None, [7, 8, 9], 1.0, token_rewards=[-2.0, 0.0, 40.0])])
    tokens = Page(draw_report(manifest(labels), labels, decode)).having("span", "t")
    minus = "\N{MINUS SIGN}"
    assert tokens[0]["title"] == f"token 1 of 3, id 7\nr {minus}2.0000\nlog π {minus}3.0000\nV 12.0000"
    # the last token's r is all of Q: it is coloured in full and does not stretch the scale of the others
    assert [str(token["class"]).split()[1:2] for token in tokens] == [["r-5"], ["l-3"], ["r5"]]
    radios = Page(draw_report(manifest(labels), labels, decode)).having("input")
    assert [radio["id"] for radio in radios] == ["view-r", "view-l", "view-v"]
    assert ["checked" in radio for radio in radios] == [True, False, False]


def test_mean_shows_the_log_probabilities_it_is_made_of():
    labels = pairs(2)
    given = manifest(labels, config={"reward": {"aggregation": "mean"}})
    radios = Page(draw_report(given, labels, decode)).having("input")
    assert ["checked" in radio for radio in radios] == [False, True, False]


def test_long_response_shows_its_beginning_and_end():
    count = HEAD + TAIL + 100
    labels = table([label("p", None, list(range(count)), 1.0)])
    html = draw_report(manifest(labels), labels, decode)
    assert len(Page(html).having("span", "t")) == HEAD + TAIL
    assert "100 more tokens" in html and f" w{HEAD - 1}<" in html and f" w{count - TAIL}<" in html


def test_long_prompt_is_folded():
    labels = table([label("word " * 400, None, [1], 1.0)])
    page = Page(draw_report(manifest(labels), labels, decode))
    assert [text for text in page.text["summary"] if text.startswith("Prompt, 2,000 characters")]
    assert not Page(draw_report(manifest(pairs(1)), pairs(1), decode)).having("p", "none")
    bare = table([label("p", None, [1], 1.0, prompt=[])])
    assert Page(draw_report(manifest(bare), bare, decode)).text["p"].count("No prompt.") == 1


@pytest.mark.parametrize("kind", ["chosen", None])
def test_one_label(kind):
    labels = table([label("p", kind, [1], -2.0)])
    page = Page(draw_report(manifest(labels), labels, decode))
    assert len(page.having("path", "area")) == 2  # the swatch and the only bar
    assert len(page.having("circle")) == 2
    assert len(page.having("article", "card")) == 1


def test_no_label():
    labels = table([])
    page = Page(draw_report(manifest(labels, errors={"empty_response": 9}), labels, decode))
    assert "No response was labelled." in page.text["p"]
    assert page.text["h2"] == ["Errors", "Reproduce"]


def test_nothing_is_needed_of_the_configuration_and_the_inputs():
    labels = pairs(3)
    bare = manifest(labels, config={}, inputs=[], timing=None, versions={})
    page = Page(draw_report(bare, labels, decode))
    assert page.text["h1"] == ["Rewards inside a language model"] and page.text["h2"][-1] == "Reproduce"


def test_a_reward_of_another_version_is_said():
    labels = table([label("p", None, [1], 1.0)])
    newer = manifest(labels, config={"reward": {"aggregation": "softmin"}})
    with pytest.raises(StoreError, match=r"config\.reward: aggregation: 'softmin': .*; draw it with the version"):
        draw_report(newer, labels, decode)


def test_a_sample_is_called_a_sample():
    whole = pairs(30)
    html = draw_report(manifest(whole), whole.slice(0, 20), decode)
    assert "Drawn from 20 of 60 labels." in html
    assert "Drawn from" not in draw_report(manifest(whole), whole, decode)


@pytest.mark.parametrize("count", [1, 2, 30, 3000])
def test_histogram_counts_are_numpys(count):
    rewards = np.random.default_rng(count).standard_t(2, count) * 50
    edges = bin_edges(rewards)
    counts = bin_counts(rewards, edges)
    assert np.allclose(np.diff(edges), edges[1] - edges[0]) and len(counts) <= 40
    inside = rewards[(rewards >= edges[0]) & (rewards <= edges[-1])]
    assert (counts[1:-1] == np.histogram(inside, edges)[0][1:-1]).all()
    assert counts.sum() == count
    assert len(inside) >= 0.99 * count if count > 200 else len(inside) == count
    drawn = draw_histogram({"chosen": rewards, "rejected": rewards[:1]})
    assert [int(n) for n in re.findall(r": (\d+) chosen, ", drawn)] == counts.tolist()


def test_histogram_of_one_value_and_of_one_kind():
    assert bin_counts(np.zeros(5), bin_edges(np.zeros(5))).sum() == 5
    drawn = draw_histogram({"other": np.full(3, -1e9)})
    assert "rejected" not in drawn and "nan" not in drawn


def test_axis_has_round_ends_around_the_values():
    axis = Axis.framing(np.array([0.13, 9.4]), 5)
    assert axis.values().tolist() == [0, 2, 4, 6, 8, 10]
    assert Axis.framing(np.array([12, 12]), 6, least=1).values().tolist() == [10, 11, 12, 13, 14]
    assert Axis.framing(np.array([-0.003, 0.001]), 4).text(-0.002) == "\N{MINUS SIGN}0.002"


def test_scatter_draws_a_bounded_number_of_points_and_owns_up_to_the_rest():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=3 * MAX_POINTS)
    rewards[:7] = 1e6
    drawn = draw_scatter({"chosen": rng.integers(1, 50, len(rewards))}, {"chosen": rewards})
    assert 0.9 * MAX_POINTS < drawn.count("<circle") <= MAX_POINTS + 1
    beyond = re.search(r"([\d,]+) labels lie beyond the frame", drawn)
    assert beyond and int(beyond[1].replace(",", "")) >= 7


def summary_with(r: float | None, labels: int = 1000, **length: float) -> Summary:
    figures = dict.fromkeys(LengthFigures.model_fields) | {"reward_length_correlation": r} | length
    return ShardStats().summary().model_copy(update={"labels": labels, "length": LengthFigures(**figures)})


@pytest.mark.parametrize(
    ("r", "reward", "said"),
    [
        (-0.93, {"aggregation": "sum"}, r"^Longer answers get lower rewards \(r.=..0\.93\): .* favours short answers"),
        (-0.3, {"aggregation": "sum"}, "^Longer answers get somewhat lower"),
        (-0.8, {"aggregation": "discounted_sum", "gamma": 0.9}, "gamma = 0.9 a token weighs little after about 10"),
        (-0.8, {"aggregation": "discounted_sum", "gamma": 1.0}, "favours short answers"),
        (-0.6, {"aggregation": "mean"}, "mean does not count tokens, so"),
        (0.6, {"aggregation": "mean"}, r"^Longer answers get higher rewards .* easier to predict"),
        (0.6, {"aggregation": "sum"}, "comes from"),
        (0.6, {"aggregation": "sum", "gamma": 0.5}, "use discounted_sum"),
        (-0.07, {"aggregation": "sum"}, "^Length hardly matters"),
        (None, {}, "do not vary together"),
    ],
)
def test_length_sentence_depends_on_the_figures(r, reward, said):
    assert re.search(said, length_sentence(summary_with(r), RewardConfig(**reward)))


def test_few_labels_say_nothing_of_length():
    assert length_sentence(summary_with(-0.8, labels=5), RewardConfig()).startswith("No relation")
    assert length_sentence(summary_with(-0.8, labels=50), RewardConfig()).startswith("Longer answers")


def test_pairs_by_length_sentence():
    sides = {"longer_wins": 0.2, "chosen_longer": 0.5, "accuracy_chosen_longer": 0.3, "accuracy_chosen_shorter": 0.9}
    assert ", but on 90%" in pairs_by_length_sentence(summary_with(-0.5, **sides))
    assert ", and on 90%" in pairs_by_length_sentence(summary_with(0.0, **sides | {"accuracy_chosen_longer": 0.88}))
    assert pairs_by_length_sentence(summary_with(0.0)) == ""


@pytest.mark.parametrize(("right", "said"), [(90, "more often than"), (50, "chance alone might"), (10, "less often")])
def test_reward_sentence_depends_on_the_interval(right, said):
    counts = PairFigures(pairs=100, right=right, ties=2, accuracy=right / 100, margin=Margin(mean=-1.0, std=2.0))
    reward = Spread(mean=-1.5, std=2.0, min=-4.0, max=1.0)
    summary = ShardStats().summary().model_copy(update={"labels": 200, "reward": reward, "pairs": counts})
    assert said in reward_sentence(summary)
    assert "2 pairs are ties" in reward_sentence(summary)
    assert "mean reward is \N{MINUS SIGN}1.5" in reward_sentence(summary.model_copy(update={"pairs": None}))


def test_formula_is_the_aggregation_in_use():
    def lines(**reward: Any) -> list[str]:
        return re.findall("<p>(.*?)</p>", formula(RewardConfig(**reward)))

    assert len(lines(aggregation="mean")) == 2
    assert "V" not in lines(aggregation="sum")[0]
    assert "V" in lines(aggregation="sum", subtract_initial_value=True)[0]
    assert "max(&gamma;" in lines(aggregation="discounted_sum", gamma=0.9, min_weight=0.1)[0]
    assert lines(alpha=0.5, gamma=0.9)[-1] == "&alpha; = 0.5, &gamma; = 0.9"


def test_configuration_comes_back_from_the_page():
    config = LabelConfig.model_validate(
        {"model": {"name": 'a "b"\n\\ \N{GRINNING FACE}\x7f'}, "input": {"paths": ["x", "y"]}, "reward": {"gamma": 0.9}}
    )
    assert LabelConfig.model_validate(tomllib.loads(to_toml(config.model_dump()))) == config


def test_markup():
    assert esc("<a href='x'>\r\x85") == "&lt;a href=&#39;x&#39;&gt;\u240d\N{REPLACEMENT CHARACTER}"
    assert [compact(n).split() for n in (9_999_999, 12_345_678, 4.5e9)] == [["9,999,999"], ["12.3", "M"], ["4.5", "B"]]


@pytest.mark.parametrize("lengths", [[5], [30, 31, 32], list(range(1, 200))])
def test_scatter_keeps_its_points_within_the_frame(lengths: list[int]) -> None:
    tokens = np.array(lengths * 40)
    drawn = draw_scatter({"chosen": tokens}, {"chosen": np.linspace(-1, 1, len(tokens))})
    points = drawn.partition('<g class="points">')[2].partition("</g>")[0]
    places = [float(x) for x in re.findall(r'cx="([-0-9.]+)"', points)]
    assert places and min(places) >= FRAME.left and max(places) <= FRAME.end


def without_tokens(labels: pa.Table) -> pa.Table:
    for name in ("token_ids", "token_logprobs", "token_values", "token_rewards"):
        empty = pa.array([[]] * labels.num_rows, SCHEMA.field(name).type)
        labels = labels.set_column(labels.schema.get_field_index(name), name, empty)
    return labels


def test_rewards_of_whole_responses_have_no_token_view_and_no_formula():
    labels = without_tokens(pairs(20))
    given = manifest(labels)
    page = Page(draw_report(given, labels, decode))
    assert page.text["h1"] == ["Rewards of tiny-chat"]
    assert page.text["h2"] == ["Rewards", "Length", "Bias", "Figures", "Reproduce"]
    assert not page.having("span", "t") and not page.having("input") and not page.having("div", "formula")
    assert not [text for text in page.text["p"] if "log-probability" in text]  # a reason that is not this reward's
    assert [name for name, _ in bias_by_aggregation(labels, RewardConfig())] == ["reward"]


def test_bias_is_that_of_each_aggregation_of_the_same_tokens():
    rng = np.random.default_rng(5)
    rows = []
    for i in range(60):
        for kind in ("chosen", "rejected"):
            values, logprobs = rng.normal(size=9).astype(np.float32), -rng.exponential(size=9).astype(np.float32)
            count = int(rng.integers(1, 10))
            v, logp = values[:count].astype(float), logprobs[:count].astype(float)
            r = logp + v - np.append(v[1:], 0.0)
            row = label(f"p{i}", kind, list(range(count)), r.sum())
            rows.append(row | {"token_values": v, "token_logprobs": logp, "token_rewards": r})
    labels = table(rows)
    found = dict(bias_by_aggregation(labels, RewardConfig()))
    assert list(found) == ["sum", "mean", "discounted_sum, gamma = 0.95"]

    def accuracy(reward):  # one pair after another, from the tokens as they were made
        return np.mean([reward(rows[i]) > reward(rows[i + 1]) for i in range(0, len(rows), 2)])

    def discounted(row):
        v, logp = row["token_values"], row["token_logprobs"]
        return sum(0.95**h * (logp[h] + v[h] - 0.95 * (v[h + 1] if h + 1 < len(v) else 0)) for h in range(len(v)))

    assert found["sum"].accuracy == accuracy(lambda row: row["reward"])
    assert found["mean"].accuracy == accuracy(lambda row: row["token_logprobs"].mean())
    assert found["discounted_sum, gamma = 0.95"].accuracy == accuracy(discounted)
    assert len({given.accuracy for given in found.values()}) > 1
    page = Page(draw_report(manifest(labels), labels, decode))
    assert [text for text in page.text["h3"] if text in found] == list(found)
    first = found["sum"]
    assert f"{first.accuracy:.1%}" in page.text["td"] and first.summary[0].replace("-", "\u2212") in page.text["p"]


def test_the_store_s_own_reward_stands_first_and_once():
    labels = pairs(12)
    stored = RewardConfig(aggregation="discounted_sum", gamma=0.9)
    found = bias_by_aggregation(labels, stored)
    assert [name for name, _ in found] == [
        "discounted_sum, gamma = 0.9", "sum", "mean", "discounted_sum, gamma = 0.95",
    ]  # fmt: skip
    assert found[0][1].margin_length_correlation == ShardStats.of(labels).summary().length.margin_length_correlation
    assert not bias_by_aggregation(table([label("p", None, [1], 1.0)]), stored)
    assert "Bias" not in Page(draw_report(manifest(one := table([label("p", None, [1], 1.0)])), one, decode)).text["h2"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")


def in_browser(html: str, tmp_path: Path) -> Page:
    """The page as a browser builds it; the browser has nothing to say on its console."""
    page = tmp_path / "report.html"
    page.write_text(html, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --dump-dom"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in seen.stderr
    return Page(seen.stdout)


def printed(html: str, tmp_path: Path) -> int:
    """How many pages of paper a browser makes of it."""
    page, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    page.write_text(html, encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --no-pdf-header-footer"
    )
    command = [str(CHROMIUM), *flags.split(), f"--print-to-pdf={paper}", f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run([*command, page.as_uri()], capture_output=True, timeout=120, check=True)
    content = paper.read_bytes()
    assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    return len(re.findall(rb"/Type\s*/Page\b", content))


@needs_chromium
def test_page_on_paper(tmp_path):
    labels = pairs(20)
    assert printed(draw_report(manifest(labels), labels, decode), tmp_path) >= 1


@needs_chromium
def test_page_in_a_browser(tmp_path):
    labels = pairs(20)
    dom = in_browser(draw_report(manifest(labels), labels, decode), tmp_path)
    assert len(dom.having("svg", "chart")) == 2 + 3  # rewards and length; the bias of three aggregations
    assert len(dom.having("circle")) - len(dom.having("circle", "dot")) == labels.num_rows + 2
    assert [radio["id"] for radio in dom.having("input")] == ["view-r", "view-l", "view-v"]
    assert any(text.startswith(f"{labels.num_rows:,} responses") for text in dom.text["p"])

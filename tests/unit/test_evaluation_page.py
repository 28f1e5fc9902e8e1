"""The page and the table of an evaluation, as a parser and a browser see them."""

import json
import re
from html import unescape
from typing import Any

import numpy as np
import pytest
from test_report import Page, in_browser, needs_chromium, printed

from pipeline.config import EvaluateConfig
from pipeline.evaluation.benchmarks.items import Answer, Item
from pipeline.evaluation.bias import bias
from pipeline.evaluation.documents import LengthGroup, Matrix, Results
from pipeline.report.bias import bias_columns
from pipeline.report.evaluation import draw_evaluation
from pipeline.report.markdown import results_markdown
from pipeline.report.page import standalone_charts
from pipeline.report.shares import FAINTEST, FULLEST, LEAST_DOT, draw_by_length, draw_intervals, draw_matrices

DOMAINS = ["academy", "business", "art", "health", "normal"]
MINUS = "\N{MINUS SIGN}"


def items(length_weight: float, count: int = 60) -> list[Item]:
    rng = np.random.default_rng(3)

    def answer(good: bool) -> Answer:
        tokens = int(rng.integers(20, 400))
        return Answer(good + length_weight * tokens + rng.normal(), tokens, "- **x**" if good else "x")

    return [Item(f"chat.json:{i}", (answer(True), answer(True)), (answer(False),)) for i in range(count)]


def biased(length_weight: float) -> dict[str, Any]:
    found = bias(items(length_weight))
    assert found
    return found.model_dump()


def reward(name: str, value: float, interval: list[float], **others: Any) -> dict[str, Any]:
    return {
        "name": name,
        "reward": name.split()[0],
        "about": "alpha times the mean of log pi",
        "model": "models/tiny-chat",
        "values": {"overall": value, "hard": value - 0.1},
        "intervals": {"overall": interval},
        "sets": {},
        "items": 120,
        "incomplete": {"items": 0, "reasons": {}, "examples": []},
        "ties": 2,
        "comparisons": 1080,
        "tie_rule": "a tie is not right",
        "responses": 720,
        "truncated": 12,
        "tokens": 123456,
        "seconds": 12.3,
        "forwarded_tokens": None,
        "seconds_per_thousand_pairs": 11.4,
        "details": {},
        "matrices": [],
        "notes": [],
        "bias": None,
        "batch_check": None,
        "judgements": None,
    } | others


def results(*rewards: dict[str, Any], **others: Any) -> dict[str, Any]:
    """As it comes back from results.json: every field that one has."""
    given = {
        "benchmark": "rm-bench",
        "about": "Content or style?",
        "chance": 0.5,
        "rewards": rewards,
        "failed": {},
        "comparisons": [],
        "notes": [],
        "config": {},
        "created": "2026-06-30T12:34:56+00:00",
    }
    return json.loads(json.dumps(given | others))


def draw(content: dict[str, Any]) -> str:
    return draw_evaluation(Results.parse(content, "results.json"))


def in_markdown(content: dict[str, Any]) -> str:
    return results_markdown(Results.parse(content, "results.json"))


def full() -> dict[str, Any]:
    matrix = {
        "title": "Rubrics and domains",
        "said": "Bright on the diagonal.",
        "row_name": "rubric",
        "column_name": "domain",
        "rows": DOMAINS,
        "columns": DOMAINS,
        "values": [[0.4 + 0.01 * i + 0.3 * (i == j) if (i, j) != (0, 4) else None for j in range(5)] for i in range(5)],
    }
    first = reward(
        "endogenous (mean)", 0.62, [0.57, 0.67],
        details={
            "domains": {"chat": {"hard": 0.5, "easy": 0.75}, "math": {"hard": 0.25, "easy": None}},
            "missing_domains": ["safety"],
            "style_gap": -0.1,
            "odd_ones": ["x", "y"],
            "subsets": {"alpacaeval": 0.9, "questions": 31},
            "curve": {"n": [1, 2, 4], "score": [0.3, 0.4, 0.45], "oracle": [0.3, 0.5, 0.8], "random": 0.3},
            "matrix": {"a": {"b": 0.123}},
        },
        matrices=[matrix],
        incomplete={"items": 3, "reasons": {"too_long": 2, "odd": 1}, "examples": ["chat.json:4"]},
        batch_check={"responses": 8, "worst": 1.2e-7, "moved": 0},
        bias=biased(0.0),
    )  # fmt: skip
    second = reward(
        "judge-pairwise", 0.48, [0.43, 0.53],
        judgements={"asked": 100, "unparsable": 7, "disagree": 22},
        bias=biased(0.02),
        notes=["The rubric was folded into the user's turn."],
    )  # fmt: skip
    compared = {
        "first": "endogenous (mean)", "second": "judge-pairwise", "figure": "overall", "difference": 0.14,
        "interval": [0.08, 0.2], "p_value": 0.0004, "p_holm": 0.0004, "items": 117,
    }  # fmt: skip
    config = EvaluateConfig.model_validate({"model": {"name": "tiny-chat"}, "evaluate": {"benchmark": "rm-bench"}})
    return results(
        first,
        second,
        comparisons=[compared],
        notes=["A small sample."],
        config=config.model_dump(exclude={"run"}),
        fingerprints={"endogenous": "ab12" * 16, "judge-pairwise": "cd34" * 16},
        inputs=[
            {"name": "chat.json", "uri": "data/chat.json", "rows": 123, "sha256": "a7d67f22" * 8, "shape": "rm-bench"}
        ],
        versions={"endoreward": "0.1.0"},
        command="endoreward evaluate run.toml",
    )


def words(html: str) -> str:
    """What a person reads, in one line."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html.partition("<body>")[2])))


def test_page_has_every_part_in_order_and_loads_nothing():
    html = draw(full())
    page = Page(html)
    assert page.text["h1"] == ["rm-bench"]
    assert page.text["h2"] == [
        "Rewards", "Figures", "Paired comparisons", "Rubrics and domains", "Domains", "Subsets", "Details", "Best of n",
        "Bias", "Counts and cost", "What to know", "Incomplete items", "Inputs", "Reproduce",
    ]  # fmt: skip
    assert not page.having("script") and not page.having("link") and not page.having("img")
    assert not re.search(r"https?:|//\w|url\(|@import|src=|href=", html)
    assert all(drawing["aria-label"] for drawing in page.having("svg", "chart"))
    assert len(page.having("svg", "chart")) == 1 + 1 + 2  # rewards, the curve, bias of both


def test_nothing_is_shown_that_is_absent():
    page = Page(draw(results(reward("endogenous", 0.6, [0.55, 0.65]))))
    assert page.text["h2"] == ["Reward", "Figures", "Counts and cost", "Reproduce"]
    assert "None" not in words(draw(full()))
    due = {name for name, field in Results.model_fields.items() if field.is_required()}
    bare = {name: value for name, value in results(reward("a", 0.6, [0.5, 0.7])).items() if name in due}
    assert "60.0%" in words(draw(bare)) and "60.0%" in in_markdown(bare)


def test_main_figure_is_big_and_has_its_interval():
    page = words(draw(full()))
    assert "overall, endogenous (mean) 62.0% 95%: 57.0% to 67.0%" in page
    assert "endogenous (mean) is right more often than chance (50.0%)." in page


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        (
            [("a", 0.51, [0.47, 0.55]), ("b", 0.49, [0.45, 0.53])],
            "Every interval includes chance .* say nothing about the rewards",
        ),
        ([("a", 0.51, [0.47, 0.55])], "^The interval includes chance .* says nothing about the reward."),
        (
            [("a", 0.51, [0.47, 0.55]), ("b", 0.6, [0.55, 0.65])],
            r"^a cannot be told from chance \(50.0%\); b is right more often",
        ),
        (
            [("a", 0.51, [0.47, 0.55]), ("b", 0.4, [0.35, 0.45]), ("c", 0.6, [0.55, 0.65]), ("d", 0.7, [0.65, 0.75])],
            r"^a cannot be told from chance \(50.0%\); c and d are right more often and b is right less often\.",
        ),
        ([("a", 0.4, [0.35, 0.45])], "less often than chance"),
        ([("a", 0.6, [0.55, 0.65]), ("b", 0.5, [0.45, 0.55])], "^a is right more often than chance"),
    ],
)
def test_verdict_depends_on_the_intervals(rewards, said):
    given = results(*(reward(*each) for each in rewards))
    verdict = Page(draw(given)).text["p"][1:3]
    assert any(re.search(said, text) for text in verdict)
    assert re.search(said, in_markdown(given), re.MULTILINE)


def test_no_chance_no_verdict():
    given = results(reward("a", 0.5, [0.4, 0.6]), chance=None)
    assert "chance" not in words(draw(given)) and len(Page(draw(given)).having("p", "lede")) == 1


def test_a_figure_that_is_undefined_is_a_dash():
    given = results(reward("a", 0.6, [0.5, 0.7]), reward("b", 0.5, [0.4, 0.6]))
    given["rewards"][1]["values"]["overall"] = None
    given["rewards"][1]["intervals"] = {}
    page = Page(draw(given))
    assert "\N{EN DASH}" in page.text["td"] and len(page.having("circle", "dot")) == 1
    assert "\N{EN DASH}" in in_markdown(given)
    given["rewards"] = given["rewards"][1:]
    assert "nan" not in draw(given)


def test_dots_stand_where_their_figures_are():
    drawn = draw_intervals([("a", 0.5, [0.4, 0.6]), ("b", 0.75, None)], 0.5, "overall")
    dots = [float(x) for x in re.findall(r'<circle class="dot" cx="([\d.]+)"', drawn)]
    [(left, right)] = [
        (float(x), float(y)) for x, y in re.findall(r'class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)"', drawn)
    ]
    ticks = {text: float(x) for x, text in re.findall(r'class="tick" x="([\d.]+)"[^>]*>([\d.]+)%', drawn)}
    assert dots[0] == ticks["50"] and left == ticks["40"] and right == ticks["60"]
    assert dots[1] == ticks["75"]
    assert float(re.findall(r'class="chance" d="M([\d.]+)', drawn)[0]) == ticks["50"]


def test_figures_beyond_a_share_have_no_percent_sign():
    drawn = draw_intervals([("a", -1234.5, [-1300.0, -1200.0])], None, "score", as_share=False)
    assert "%" not in drawn and f"{MINUS}1,234" in drawn


def test_comparison_says_who_is_higher():
    page = words(draw(full()))
    assert (
        "minus judge-pairwise endogenous (mean) is higher overall +14.0 points +8.0 to +20.0 < 0.001 < 0.001 117"
        in page
    )
    assert "p decides" in page
    given = full()
    given["comparisons"][0] |= {"difference": -0.02, "interval": [-0.08, 0.04], "p_value": 0.5, "p_holm": 0.5}
    page = words(draw(given))
    assert f"no difference can be told overall {MINUS}2.0 points {MINUS}8.0 to +4.0 0.500 0.500 117" in page


def test_heat_maps_read_without_colour_and_share_one_scale():
    matrix = Matrix.model_validate(full()["rewards"][0]["matrices"][0])
    other = matrix.model_copy(update={"values": [[0.2] * 5] * 5})
    drawn = draw_matrices([("a", matrix), ("b", other)])
    cells = re.findall(r'<td style="background:rgb\(var\(--up\) / ([\d.]+)\)">([\d.]+)%</td>', drawn)
    values = [v for each in (matrix, other) for row in each.values for v in row if v is not None]
    assert [float(text) for _, text in cells] == [round(100 * v, 1) for v in values]
    high = max(values)
    for (shade, _), value in zip(cells, values, strict=True):
        assert float(shade) == pytest.approx(FAINTEST + (FULLEST - FAINTEST) * (value - 0.2) / (high - 0.2), abs=0.006)
    assert drawn.count('class="scale"') == 1 and "20.0%<span aria-hidden" in drawn
    assert drawn.count("<td>\N{EN DASH}</td>") == 1
    page = Page(drawn)
    assert page.text["th"] == ["domain", "rubric", *DOMAINS, *DOMAINS] * 2 and page.text["h3"] == ["a", "b"]
    assert "nan" not in draw_matrices([("a", other)]) and 'class="scale"' not in draw_matrices([("a", other)])


def test_bias_chart_has_a_dot_for_each_group_of_pairs():
    given = bias(items(0.02))
    assert given
    drawn = draw_by_length(given.deciles, "a")
    said = re.findall(r"<title>([^<]+)</title>", drawn)
    assert len(said) == len(given.deciles) > 5
    for text, group in zip(said, given.deciles, strict=True):
        assert f"{group.low:,} to {group.high:,} tokens: {group.accuracy:.1%}" in text.replace(MINUS, "-")
    heights = [float(y) for y in re.findall(r'<circle class="dot" cx="[\d.]+" cy="([\d.]+)"', drawn)]
    accuracies = [group.accuracy for group in given.deciles]
    assert np.argsort(heights, kind="stable").tolist() == np.argsort([-a for a in accuracies], kind="stable").tolist()


def test_area_of_a_dot_grows_with_its_pairs():
    def group(low: int, pairs: int) -> LengthGroup:
        return LengthGroup(low=low, high=low, pairs=pairs, accuracy=0.5, interval=[0.4, 0.6])

    drawn = draw_by_length([group(i, n) for i, n in enumerate((100, 400, 1600, 1))], "a")
    radii = [float(r) for r in re.findall(r'<circle class="dot"[^>]* r="([\d.]+)"', drawn)]
    assert radii[1] / radii[0] == pytest.approx(2, abs=0.01) and radii[2] / radii[1] == pytest.approx(2, abs=0.01)
    assert radii[3] == LEAST_DOT < radii[0]


def test_bias_table_has_the_correlations():
    found = bias(items(0.02))
    assert found
    head, [row] = bias_columns([("a", found)])
    value, under = row[head.index("correlation with length")]
    answers = [answer for item in items(0.02) for answer in (*item.chosen, *item.rejected)]
    expected = np.corrcoef([a.num_tokens for a in answers], [a.reward for a in answers])[0, 1]
    assert value == f"{expected:+.2f}" and expected > 0.8
    assert float(under.split()[0]) == pytest.approx(found.margin_length_correlation, abs=0.006)
    page = words(draw(results(reward("a", 0.6, [0.5, 0.7], bias=found.model_dump()))))
    assert "correlation with length" in page and f"{value} {under}" in page
    unknown = found.model_copy(update={"reward_length_correlation": None, "margin_length_correlation": None})
    assert "correlation with length" not in bias_columns([("a", unknown)])[0]


def test_bias_table_and_sentences():
    given = full()
    page = words(draw(given))
    for each in given["rewards"]:
        found = each["bias"]
        assert f"{found['length_controlled']['accuracy']:.1%}" in page and f"{found['longer_wins']:.1%}" in page
        assert all(sentence.replace("-", MINUS) in page for sentence in found["summary"])


def test_groups_counts_and_lists_of_details():
    page = words(draw(full()))
    assert "chat endogenous (mean) 50.0% 75.0%" in page and "math endogenous (mean) 25.0% \N{EN DASH}" in page
    assert "alpacaeval 90.0%" in page and "questions 31" in page
    assert "missing domains" not in page and "style gap" not in page  # notes say them
    assert "12.3%" not in page  # `matrix` has its own drawing


def test_details_that_repeat_the_figures_or_fill_a_page_are_out_of_the_way():
    given = results(reward("a", 0.6, [0.5, 0.7]))
    given["rewards"][0]["details"] = {
        "sections": {"hard": given["rewards"][0]["values"]["hard"]},
        "subsets": {f"s{i}": {"accuracy": 0.5, "items": 9} for i in range(80)},
    }
    page = Page(draw(given))
    assert page.text["h2"] == ["Reward", "Figures", "Subsets", "Counts and cost", "Reproduce"]
    assert page.text["summary"] == ["80 lines"] and "s79" in page.text["th"]


def test_what_to_know():
    page = Page(draw(full()))
    assert page.text["li"][-4:] == [
        "A small sample.",
        "endogenous (mean): 8 requests asked once more alone gave the same answer as in a batch within 1.2e-7.",
        "judge-pairwise: The rubric was folded into the user's turn.",
        "judge-pairwise: of 100 pairs 7 could not be judged in the format asked for (7.0%); in 22 the two orders named no "
        "common winner.",
    ]
    moved = results(reward("a", 0.6, [0.5, 0.7], batch_check={"responses": 8, "worst": 0.02, "moved": 1}))
    said = "Of 8 requests asked once more alone, 1 gave another answer than in a batch (rewards up to 2.0e-2 apart)."
    assert said in words(draw(moved))
    shared = results(*(reward(n, 0.6, [0.5, 0.7], notes=["no items of math"]) for n in "ab"))
    assert Page(draw(shared)).text["li"] == ["No items of math."]
    assert "- No items of math.\n" in in_markdown(shared)


def test_text_from_data_is_never_markup():
    evil = "</style><script>alert(1)</script>\"'&"

    def spoil(value: Any) -> Any:
        if isinstance(value, str):
            return evil + value
        if isinstance(value, list):
            return [spoil(each) for each in value]
        return {key: spoil(each) for key, each in value.items()} if isinstance(value, dict) else value

    given = spoil(full())
    for each in given["rewards"]:
        each["details"] |= {evil: {evil: {evil: 0.5}}, evil * 2: {evil: 0.1}}
        each["values"][evil] = 0.3
        each["incomplete"]["reasons"] = {evil: 1}
    html = draw(given)
    page = Page(html)
    assert "alert(1)" in html and not page.having("script") and len(page.having("style")) == 1
    assert all("on" not in {name[:2] for name in attributes} for _, attributes in page.elements)


def test_markdown_is_tables_that_line_up():
    text = in_markdown(full())
    assert text.startswith("# rm-bench\n\nContent or style?\n")
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 4  # figures, counts, comparisons, bias
    for table in tables:
        lines = table.splitlines()
        assert len({len(line) for line in lines}) == 1 and len({line.count("|") for line in lines}) == 1
    assert re.search(r"\| endogenous \(mean\) \| 62\.0% \(57\.0% to 67\.0%\) \| +52\.0% \|", tables[0])
    counts = [cell.strip() for cell in tables[1].splitlines()[2].split("|")[1:-1]]
    assert counts == ["endogenous (mean)", "120", "3", "1,080", "2", "720", "12", "123,456", "11.4"]
    assert "+14.0 points" in tables[2] and "- A small sample." in text
    assert "- endogenous (mean): 3 items are incomplete (too_long 2, odd 1)." in text
    assert text.count("Ties: a tie is not right.") == 1
    one = results(reward("a", 0.6, [0.5, 0.7], incomplete={"items": 1, "reasons": {"odd": 1}, "examples": []}))
    assert "- 1 item is incomplete (odd 1)." in in_markdown(one)
    rules = results(*(reward(n, 0.6, [0.5, 0.7], tie_rule=f"as {n} does") for n in "ab"))
    assert "a: ties: as a does.\nb: ties: as b does." in in_markdown(rules)


def test_markdown_has_the_bias():
    given = full()
    text = in_markdown(given)
    table, said = re.search(r"## Bias\n\n(\|.*?)\n\n(.*?)\n\n", text, re.DOTALL).groups()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[0] == ["reward", "at equal length", "chosen longer", "chosen shorter", "longer wins", "longer is chosen",
                        "correlation with length"]  # fmt: skip
    for line, each in zip(lines[2:], given["rewards"], strict=True):
        found = each["bias"]
        assert line[0] == each["name"] and line[4] == f"{found['longer_wins']:.1%}"
        assert line[2].startswith(f"{found['chosen_longer']['accuracy']:.1%} (")
        assert line[6].replace(MINUS, "-").startswith(f"{found['reward_length_correlation']:+.2f} (")
        assert all(sentence.replace("-", MINUS) in said for sentence in found["summary"])
    assert "## Bias" not in in_markdown(results(reward("a", 0.6, [0.5, 0.7])))


def test_many_truncated_responses_are_told_of_at_the_top():
    def lede(*truncated: int) -> list[str]:
        given = results(*(reward(f"r{i}", 0.6, [0.55, 0.65], truncated=t) for i, t in enumerate(truncated)))
        page = draw(given)
        said = [text for text in re.findall(r'<p class="lede">(.*?)</p>', page) if "cut to fit" in text]
        assert not said or said[0] in in_markdown(given).partition("|")[0]
        return said

    read = "of responses were cut to fit: length and style are those of what was read."
    assert lede(612, 612) == [f"85% {read}"]  # of 720
    assert lede(612, 36) == [f"r0: 85% {read}"]  # 36 are 5%, not more
    assert lede(612, 37) == [f"r0: 85% {read} r1: 5% {read}"]
    assert lede(12) == []


def test_rewards_without_figures_are_told_of_at_the_top_and_once():
    why = "no item is complete <b>"
    given = results(
        reward("a", 0.6, [0.55, 0.65]),
        failed={"verifier": why},
        notes=["A small sample"],
    )
    page = Page(draw(given))
    assert page.text["h2"][:2] == ["Without figures", "Reward"]
    assert words(draw(given)).count("no item is complete") == 1
    assert f"{why}." in page.text["td"] and page.text["li"] == ["A small sample."]
    text = in_markdown(given)
    assert f"## Without figures\n\n- verifier: {why}.\n" in text and text.count("no item is complete") == 1
    assert "Without figures" not in in_markdown(full()) + draw(full())


def test_neither_of_two_rewards_near_chance_is_called_higher():
    compared = {
        "first": "a", "second": "b", "figure": "overall", "difference": 0.02, "interval": [0.01, 0.03],
        "p_value": 0.001, "p_holm": 0.001, "items": 117,
    }  # fmt: skip

    def finding(second: list[float], **others: Any) -> str:
        rewards = reward("a", 0.51, [0.47, 0.55]), reward("b", 0.49, second)
        for each in rewards:
            each["intervals"]["hard"] = [0.4, 0.6]
        page = words(draw(results(*rewards, comparisons=[compared | others])))
        return re.findall(r"minus b (.*?) (?:overall|hard) \+2\.0 points", page)[0]

    assert finding([0.45, 0.53]) == "differ, both near chance"
    assert finding([0.43, 0.49]) == "a is higher"
    assert finding([0.45, 0.53], figure="hard") == "a is higher"  # of which chance is not known
    assert finding([0.45, 0.53], p_holm=0.2) == "no difference can be told"


@needs_chromium
def test_page_in_a_browser(tmp_path):
    dom = in_browser(draw(full()), tmp_path)
    assert len(dom.having("svg", "chart")) == 4
    assert len(dom.having("table", "heat")) == 1
    assert printed(draw(full()), tmp_path) >= 1
    assert "62.0%" in dom.text["b"] and dom.text["h2"][-1] == "Reproduce"


def test_charts_stand_alone():
    import xml.etree.ElementTree as ElementTree

    page = draw(full())
    charts = standalone_charts(page)
    assert len(charts) == page.count('<svg class="chart"') >= 3
    for name, chart in charts.items():
        root = ElementTree.fromstring(chart)
        assert root.tag.endswith("svg") and float(root.attrib["width"]) > 100, name
        assert ".grid" in chart and "@media" not in chart


def test_sets_are_shown_with_their_intervals():
    sets = {"chat": {"items": 129, "value": 0.498, "interval": [0.41, 0.58]}}
    given = results(reward("a", 0.5, [0.4, 0.6], sets=sets), reward("b", 0.6, [0.55, 0.65]))
    page = words(draw(given))
    assert "By set" in page and "49.8%" in page and "41.0% to 58.0%" in page
    assert "| chat | " in in_markdown(given) and "49.8% (41.0% to 58.0%)" in in_markdown(given)
    assert "By set" not in draw(results(reward("a", 0.5, [0.4, 0.6])))

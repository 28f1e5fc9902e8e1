"""docs/evidence.md: its tables and figures are those of the JSON, its rules choose as they say, its costs are arithmetic."""

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "benchmarks" / "evidence"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    import page

    return page


@pytest.fixture
def gamma(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    import gamma

    return gamma


def test_the_page_is_as_it_is_drawn_of_the_json(page: ModuleType) -> None:
    for path, text in page.files().items():
        assert path.read_text() == text, f"{path.name}: run python benchmarks/evidence/page.py"


def test_no_figure_of_the_page_is_written_by_hand(page: ModuleType) -> None:
    by_hand = page.SECTION.sub("", page.PAGE.read_text())
    assert not re.search(r"\d\s?%|\d\.\d points", by_hand.replace("95% intervals", ""))
    assert "DPO on UltraFeedback" in by_hand


def test_another_figure_is_seen(page: ModuleType) -> None:
    """And each cell comes from where it should."""
    made = page.documents()
    texts, charts = page.sections(made)
    entry = next(each for each in made["soda-chat"]["rewards"] if each["name"] == "r_h: mean")
    assert f"| **mean** | {100 * entry['values']['accuracy']:.1f}% |" in texts["rewards-soda-chat"]
    entry["values"]["accuracy"] = 0.123
    made["gamma"]["curves"]["soda-chat"][0]["accuracy"] = 0.123
    others, drawn = page.sections(made)
    assert "| **mean** | 12.3% |" in others["rewards-soda-chat"] and drawn["gamma.svg"] != charts["gamma.svg"]


def test_every_document_says_what_made_it(page: ModuleType) -> None:
    for name, made in page.documents().items():
        assert made["command"].startswith("python benchmarks/evidence/"), name
        assert re.fullmatch(r"[0-9a-f]{40}", made["commit"]) and re.fullmatch(r"[0-9a-f]{64}", made["model"]["sha256"])
        assert made["machine"] and "/tmp" not in json.dumps(made) and "/work" not in json.dumps(made), name


def pairs(gamma: ModuleType, name: str = "x", long_is_better: bool = True) -> object:
    """Two items: the longer response is three times a token of -1, the shorter is twice one of -1.2."""
    short, long = np.full(2, -1.2), np.full(3, -1.0)
    sides = [(1, 0), (3, 2)] if long_is_better else [(0, 1), (2, 3)]
    logprobs = [short, long, short, long]
    return gamma.Pairs(name, logprobs, [each + 0.5 for each in logprobs], np.array(sides), np.array([0, 1]), ["", ""])


def test_rules_choose_without_the_set_they_are_reported_on(gamma: ModuleType) -> None:
    """-1.2 (1 + g) against -(1 + g + g^2): the longer response wins below g = (0.2 + sqrt(0.84)) / 2 = 0.558."""
    sets = [pairs(gamma, "long"), pairs(gamma, "short", long_is_better=False)]
    curves = {each.name: gamma.curve(each) for each in sets}
    wins = {point["gamma"]: point["longer_wins"] for point in curves["long"]}
    assert {g: wins[g] for g in (1.0, 0.6, 0.5)} == {1.0: 0.0, 0.6: 0.0, 0.5: 1.0}
    rules = {rule["rule"]: rule["sets"] for rule in gamma.rules(sets, curves)}
    of_others = rules["gamma chosen on all other sets"]
    assert of_others["long"]["choice"] == "gamma 1" and of_others["long"]["accuracy"] == 0
    assert of_others["short"]["choice"] == "gamma 0.5" and of_others["short"]["accuracy"] == 0
    assert of_others["long"]["saw"] == ["short"] and not of_others["long"]["upper_bound"]
    own = rules["gamma chosen on the set itself"]["long"]
    assert own["accuracy"] == 1 and own["upper_bound"]
    assert rules["mean"]["long"]["accuracy"] == 1 and rules["mean"]["short"]["accuracy"] == 0
    assert rules["length-controlled fit on the set itself"]["long"]["accuracy"] == 1
    lost = {row["chosen_on"]: row["price"] for row in gamma.prices(sets, curves)}
    assert lost["long"]["short"]["points"] == 1 and lost["long"]["long"]["points"] == 0


def test_r_h_at_another_gamma_telescopes(gamma: ModuleType) -> None:
    """sum_h g^(h-1) r_h = V(s_1) + sum_h g^(h-1) log pi (docs/reward.md)."""
    each = pairs(gamma)
    [first, *_], logprobs = gamma._discounted_rewards(each, 0.9), each.logprobs[0]
    value = (each.rewards[0] - logprobs).sum()  # V(s_1)
    weights = 0.9 ** np.arange(len(logprobs))
    assert (weights * first).sum() == pytest.approx(value + (weights * logprobs).sum())


def test_intervals_are_over_items(gamma: ModuleType) -> None:
    """Pairs of one item go together: forty right pairs of one item and forty wrong ones of another say little."""
    scores = np.repeat([1.0, 0.0], 40)
    assert gamma.interval(scores, np.repeat([0, 1], 40)) == [0.0, 1.0]
    low, high = gamma.interval(scores, np.arange(80))
    assert 0.35 < low < 0.5 < high < 0.65


def test_a_cost_is_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of published models the weights that multiply are what their names say, less the embedding."""
    monkeypatch.syspath_prepend(str(EVIDENCE))
    import cost

    seven, seventy = cost.SHAPES
    weights = [each.layers * each.layer_weights + each.hidden * each.vocabulary for each in (seven, seventy)]
    assert 7.0e9 < weights[0] < 7.2e9 and 69e9 < weights[1] < 70e9
    assert seven.flops(1, 1, 0) == 2 * weights[0] and seven.flops(2, 0, 10) - seven.flops(2, 0, 0) == 80 * 28 * 3584
    shown = "Rows               129 in 1 files\nResponses          774\nResponse tokens    1,234\nTokens to forward  2,345 (a"
    assert cost.estimate(shown) == {"rows": 129, "responses": 774, "response_tokens": 1234, "tokens": 2345}


def test_a_difference_over_sets_weighs_each_set_alike(gamma: ModuleType) -> None:
    """+1 on ten items and 0 on forty: half, and nothing varies."""
    sets = [(np.ones(10), np.arange(10)), (np.zeros(40), np.arange(40))]
    assert gamma.over_sets(sets) == {"points": 0.5, "interval": [0.5, 0.5]}
    low, high = gamma.over_sets([(np.tile([1.0, -1.0], 50), np.arange(100)), sets[1]])["interval"]
    assert -0.13 < low < -0.07 < 0.07 < high < 0.13

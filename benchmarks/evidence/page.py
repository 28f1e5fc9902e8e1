"""The tables and figures of docs/evidence.md, drawn from the JSON of benchmarks/results/evidence.

    python benchmarks/evidence/page.py            # writes the sections of the page and docs/figures/*.svg
    python benchmarks/evidence/page.py --check    # writes nothing, exits 1 where a file is another than it would be

A section stands between `<!-- drawn: NAME -->` and `<!-- end -->`; what is between is drawn anew. All else on the page is
written by hand, and holds no measured figure.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "evidence")]

from claims import RUBRICS, claims  # noqa: E402  needs the line above
from figures import Line, draw_lines  # noqa: E402

RESULTS, PAGE, FIGURES = (
    ROOT / "benchmarks" / "results" / "evidence",
    ROOT / "docs" / "evidence.md",
    ROOT / "docs" / "figures",
)
SECTION = re.compile(r"(<!-- drawn: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SETS = {
    "rm-bench-chat": "RM-Bench chat",
    "hh-harmless": "HH harmless",
    "gsm8k": "GSM8K",
    "dsp": "DSP",
    "soda-chat": "soda-chat",
}
STYLES = {name: number for number, name in enumerate(SETS)}
SEEN = "The model went through DPO on UltraFeedback, by its card: its logits have seen preferences."
MISSING = "*Not measured.*\n"
ONE_REWARD = ("endogenous", "likelihood")  # of these the rows of the stored tokens show more

Json = dict[str, Any]
Documents = dict[str, Json]


def documents(folder: Path = RESULTS) -> Documents:
    """By name of file, without its end."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%".replace("-", "\N{MINUS SIGN}")


def within(ends: Sequence[float] | None) -> str:
    return "" if not ends else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}".replace("-", "\N{MINUS SIGN}")


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def source(made: Json) -> str:
    """The line under a table: what makes it again."""
    commit = made["commit"][:10] + (", changed" if made.get("changed") else "")
    return f"\n`{made['command']}`, at {commit}, {made['machine']}, {made['created'][:10]}. {SEEN}\n"


# Tables of rewards


def rewards_table(made: Json) -> str:
    names = list(dict.fromkeys(name for entry in made["rewards"] for name in entry["values"]))
    head = ["reward", names[0], "95%", *names[1:], "items", "longer wins", "at equal length"]
    rows = []
    for name, entry in shown(made["rewards"]):
        length = entry["length"] or {}
        controlled = (length.get("length_controlled") or {}).get("accuracy")
        cells = [name, percent(entry["values"][names[0]]), within(entry["intervals"].get(names[0]))]
        cells += [percent(entry["values"].get(other)) for other in names[1:]]
        rows.append([*cells, f"{entry['items']:,}", percent(length.get("longer_wins")), percent(controlled)])
    lines = [table(head, rows)]
    lines += [f"\n{name} has no figures: {why}\n" for name, why in made["failed"].items()]
    for entry in made["rewards"][-1:]:  # of the store that all have
        if lost := entry["incomplete"]["items"]:
            reasons = ", ".join(f"{reason} {count}" for reason, count in entry["incomplete"]["reasons"].items())
            lines.append(f"\nItems without a reward for each response: {lost} ({reasons}).\n")
    judged = [entry for entry in made["rewards"] if entry["judgements"]]
    for entry in judged:
        told = entry["judgements"]
        lines.append(f"\n{entry['name']}: {told['unparsable']} of {told['asked']} judgements could not be read.\n")
    return "".join([*lines, source(made)])


def shown(entries: Sequence[Json]) -> list[tuple[str, Json]]:
    """Name and entry of each row. Of rewards that rank the responses to a prompt alike one stands: discounted sums of r_h and
    of log pi differ by V(s_1)."""
    rows = []
    discounted = [entry for entry in entries if entry["name"].startswith("log pi: discounted")]
    log_pi = {entry["name"].rpartition(" ")[2]: entry["values"] for entry in discounted}
    for entry in entries:
        name, tokens = entry["name"], entry["run"] == "tokens"
        if not tokens and entry["reward"] in (*ONE_REWARD, "self-certainty", "negative-entropy"):
            continue  # the same store's tokens have them below
        if name.startswith("r_h: discounted_sum") and log_pi.get(name.rpartition(" ")[2]) == entry["values"]:
            continue
        if name in ("r_h: sum, gamma 1", "r_h: discounted_logprobs, gamma 1"):
            continue
        rows.append((row_name(name), entry))
    return sorted(rows, key=lambda row: order(row[0]))


def row_name(name: str) -> str:
    gamma = name.rpartition("gamma ")[2]
    if name.startswith("log pi: discounted"):
        return "**sum** (gamma 1)" if gamma == "1" else f"log pi discounted by {gamma}"
    if name.startswith("r_h: discounted_sum"):
        return f"r_h discounted by {gamma}"
    if name.startswith("r_h: sum"):
        return f"sum of r_h at gamma {gamma} (leaks)"
    return {
        "r_h: mean": "**mean**",
        "r_h: self_certainty": "self-certainty",
        "r_h: negative_entropy": "negative entropy",
    }.get(name, name)


ORDER = (
    "**sum**",
    "**mean**",
    "log pi discounted",
    "r_h discounted",
    "sum of r_h",
    "self-certainty",
    "negative entropy",
)


def order(name: str) -> int:
    first = next((i for i, each in enumerate(ORDER) if name.startswith(each)), len(ORDER))
    return len(ORDER) + 1 if name == "the longer response" else first


# The rule for gamma


def rules_table(made: Json) -> str:
    names = [name for name in SETS if name in made["sets"]]
    rows = []
    for rule in made["rules"]:
        cells = [rule["rule"]]
        for name in names:
            cell = rule["sets"][name]
            mark = "\N{DAGGER}" if cell["upper_bound"] else ""
            choice = f"; {cell['choice']}" if cell["choice"] else ""
            cells.append(f"{percent(cell['accuracy'])}{mark} ({within(cell['interval'])}{choice})")
        fair = [rule["sets"][name]["accuracy"] for name in names if not rule["sets"][name]["upper_bound"]]
        less = rule["less_rmgap"]
        whole = len(fair) == len(names)
        cells.append(percent(sum(fair) / len(fair)) if whole else "")
        rows.append([*cells, f"{points(less['points'])} ({within(less['interval'])})" if whole else ""])
    sizes = ", ".join(f"{SETS[n]} {made['sets'][n]['items']} items, {made['sets'][n]['pairs']} pairs" for n in names)
    head = ["rule", *(SETS[name] for name in names), "mean over sets", "less gamma 0.93, points"]
    note = f"\n\N{DAGGER} chosen on the very pairs that it is reported on: an upper bound. {sizes}.\n"
    return table(head, rows) + note + source(made)


def prices_table(made: Json) -> str:
    names = [name for name in SETS if name in made["sets"]]
    rows = []
    for row in sorted(made["prices"], key=lambda row: names.index(row["chosen_on"])):
        low, high = row["resampled"]
        cells = [SETS[row["chosen_on"]], f"{row['gamma']:g}", f"{low:g} to {high:g}"]
        for name in names:
            price = row["price"][name]
            own = name == row["chosen_on"]
            cells.append("" if own else f"{points(price['points'])} ({within(price['interval'])})")
        rows.append(cells)
    head = ["gamma chosen on", "gamma", "95% of resamples", *(f"lost on {SETS[name]}" for name in names)]
    return table(head, rows) + source(made)


def gamma_figure(made: Json) -> str:
    lines = [
        Line(SETS[name], [(point["gamma"], point["accuracy"]) for point in made["curves"][name]], STYLES[name])
        for name in SETS
        if name in made["curves"]
    ]
    return draw_lines("Share of pairs right by gamma, log pi discounted", lines, "gamma")


def styles_figure(made: Json) -> str:
    curve = made["curves"]["rm-bench-chat"]
    kinds = [kind for kind in ("hard", "normal", "easy") if kind in curve[0]["kinds"]]
    lines = [Line(kind, [(point["gamma"], point["kinds"][kind]) for point in curve]) for kind in kinds]
    lines.append(Line("all", [(point["gamma"], point["accuracy"]) for point in curve]))
    return draw_lines("RM-Bench chat by style of the two responses and gamma, log pi discounted", lines, "gamma")


def longer_figure(made: Json) -> str:
    lines = [
        Line(SETS[name], [(point["gamma"], point["longer_wins"]) for point in made["curves"][name]], STYLES[name])
        for name in SETS
        if name in made["curves"]
    ]
    return draw_lines("Share of pairs in which the longer response wins, by gamma", lines, "gamma")


def floor_figure(made: Json) -> str:
    floors = made["floors"]["rm-bench-chat"]
    lines = []
    for gamma in (0.93, 0.8):
        for kind in ("log pi", "r_h"):
            values = [(each["floor"], each[kind]["accuracy"]) for each in floors if each["gamma"] == gamma]
            lines.append(Line(f"{kind}, {gamma:g}", values))
    return draw_lines("RM-Bench chat by the floor of the weights", lines, "floor")


# alpha, agreement, rubrics, cost


def counts(made: Documents) -> list[Json]:
    found = {name.removeprefix("agreement-"): each for name, each in made.items() if name.startswith("agreement-")}
    return [found[name] for name in SETS if name in found]


def alpha_figure(made: Documents, way: str) -> str:
    lines = [
        Line(
            SETS[each["set"]], [(a["alpha"], a[way] / each["comparisons"]) for a in each["alphas"]], STYLES[each["set"]]
        )
        for each in counts(made)
        if each["alphas"]
    ]
    return draw_lines(f"Share of pairs right by alpha, {way}", lines, "alpha")


def agreement_table(made: Documents) -> str:
    rows = []
    for each in counts(made):
        sizes = [SETS[each["set"]], f"{each['items']}", f"{each['responses']:,}", f"{each['comparisons']:,}"]
        ways = [f"{n['loop']} and {n['store']}" for n in each["counts"].values()]
        largest = max(n["largest"] for n in each["counts"].values())
        rows.append([*sizes, *ways, f"{largest:.0e}"])
    first = counts(made)[0]
    head = ["set", "items", "responses", "comparisons", *first["counts"], "largest relative difference"]
    sources = "".join(source(each) for each in counts(made))
    return table(head, rows) + sources


def rubrics_table(made: Documents) -> str:
    rows = []
    names = {"dsp": "examples/dsp-rubrics.toml"} | {f"dsp-paraphrase-{i}": f"paraphrase {i}" for i in (1, 2, 3)}
    for name, title in names.items():
        if name not in made:
            continue
        for reward, entry in shown(made[name]["rewards"]):
            if reward in ("**sum** (gamma 1)", "**mean**", "log pi discounted by 0.93", "log pi discounted by 0.97"):
                values = entry["values"]
                cells = [percent(values["diagonal"]), within(entry["intervals"]["diagonal"])]
                lift = [points(values["lift"]), within(entry["intervals"].get("lift"))]
                brightest = f"{round(5 * values['brightest'])} of 5"
                rows.append([title, reward, f"{entry['items'] // RUBRICS}", *cells, *lift, brightest])
    head = ["rubrics", "reward", "queries", "diagonal", "95%", "lift, points", "95%", "brightest"]
    return table(head, rows) + "".join(source(made[name]) for name in names if name in made)


def cost_table(made: Json) -> str:
    rows = [
        [
            each["name"],
            str(each["gpus"]),
            f"{each['flops']:.2e}",
            f"{each['seconds_at_peak']:,.0f}",
            f"{each['seconds']:,.0f}",
            f"{each['euros']:.2f}",
            f"{each['published_seconds']:,.0f}",
            f"{each['published_euros']:.2f}",
        ]
        for each in made["models"]
    ]
    head = ["model", "H100s", "FLOPs", "s at peak", "s", "euros", f"s, {made['published_items']:,} items", "euros"]
    total = made["counts"]
    said = (
        f"\n{total['rows']:,} items of {' and '.join(made['files'])}: {total['response_tokens']:,} response tokens, "
        f"{total['tokens']:,} to forward, by a sample of each file. Assumed: a peak of {made['peak'] / 1e12:.0f} TFLOP/s, of "
        f"which products reach {made['of_peak']:g} and the scorer {made['of_floor']:g} of that, and "
        f"{made['euros_an_hour']:g} euros for an hour of a GPU; a model spread over two GPUs computes on one of them at a "
        "time and pays for both.\n"
    )
    commands = "".join(f"\n    {each['command']} --dry-run\n" for each in made["models"])
    return table(head, rows) + said + commands + source(made)


# The page


def figure(name: str, draw: Callable[[], str]) -> tuple[str, dict[str, str]]:
    drawn = draw()
    title = re.search(r'aria-label="([^"]*)"', drawn)
    assert title
    said = title[1].replace("\N{MINUS SIGN}", "-")  # of a name, which no chart shows
    return f"![{said}](figures/{name}.svg)\n\n*{said}.* {SEEN}\n", {f"{name}.svg": drawn}


def sections(made: Documents) -> tuple[dict[str, str], dict[str, str]]:
    """Text by the section's name, and the figures by name of file."""
    texts = {f"rewards-{name}": rewards_table(made[name]) for name in SETS if name in made}
    charts: dict[str, str] = {}
    drawn: dict[str, Callable[[], str]] = {}
    if "gamma" in made:
        gamma = made["gamma"]
        texts |= {"rules": rules_table(gamma), "prices": prices_table(gamma)}
        drawn |= {"gamma": lambda: gamma_figure(gamma), "longer": lambda: longer_figure(gamma)}
        if "rm-bench-chat" in gamma["curves"]:
            drawn |= {"styles": lambda: styles_figure(gamma), "floor": lambda: floor_figure(gamma)}
    if counts(made):
        texts["agreement"] = agreement_table(made)
        drawn |= {"alpha-sum": lambda: alpha_figure(made, "sum"), "alpha-mean": lambda: alpha_figure(made, "mean")}
    if "dsp" in made:
        texts["rubrics"] = rubrics_table(made)
    if "cost" in made:
        texts["cost"] = cost_table(made["cost"])
    texts |= claims(made)
    for name, draw in drawn.items():
        texts[f"figure-{name}"], files = figure(name, draw)
        charts |= files
    return texts, charts


def redrawn(page: str, texts: dict[str, str]) -> str:
    """The page with each section as it is drawn now; a section whose JSON is not there says so."""
    return SECTION.sub(lambda found: f"{found[1]}{texts.get(found[2], MISSING)}{found[3]}", page)


def files(page: str | None = None) -> dict[Path, str]:
    """Every file that the command writes."""
    texts, charts = sections(documents())
    text = redrawn(PAGE.read_text() if page is None else page, texts)
    return {PAGE: text, **{FIGURES / name: chart for name, chart in charts.items()}}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    arguments = parser.parse_args(given)
    differing = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    if arguments.check:
        print("\n".join(f"{path.relative_to(ROOT)} is another" for path in differing) or "all as drawn")
        sys.exit(1 if differing else 0)
    FIGURES.mkdir(parents=True, exist_ok=True)
    for path, text in files().items():
        path.write_text(text)
    print(f"{len(differing)} files changed")


if __name__ == "__main__":
    main()

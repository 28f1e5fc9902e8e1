"""The page of a training run: what was trained on what, where it started and ended, and its curves.

It shows what run.json and metrics.jsonl hold. The page of an online run (`pipeline.report.rl`) has its parts from here.
Left out: anything that needs a model; what a run's figures are worth on a benchmark is the page of an evaluation.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from pipeline.config import RewardConfig
from pipeline.report.bias import named
from pipeline.report.curves import Curve, Points, beyond, draw_curves, reading
from pipeline.report.markup import compact, esc, minus
from pipeline.report.page import facts, listed, multiples, page, reproduce, section, table, wide_section
from pipeline.store.summary import plain
from pipeline.training.config import OBJECTIVES, PAIR_OBJECTIVES, SECTION_OF
from pipeline.training.metrics import EVAL, MetricRow, end_size, ends, finite, numbers

Run = dict[str, Any]

WORDS = {
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "reward margin",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "kl": "KL to the reference",
    "grad_norm": "norm of the gradient",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens a second",
    "logps/chosen": "log π of chosen",
    "logps/rejected": "log π of rejected",
    "reward_std": "spread of rewards",
    "frac_reward_zero_std": "groups of equal rewards",
    "entropy": "entropy of the next token",
    "completions/mean_length": "mean length, tokens",
    "completions/min_length": "shortest response, tokens",
    "completions/max_length": "longest response, tokens",
    "completions/mean_terminated_length": "mean length of whole responses, tokens",
    "completions/clipped_ratio": "cut off",
    "step_time": "seconds a step",
    "repetition": "repeated 4-grams",
    "distinct": "different responses to a prompt",
}
SHARES = ("accuracies", "accuracy", "completions/clipped_ratio", "repetition", "distinct", "frac_reward_zero_std")
FIRST = ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "reward", "kl")
LAST = ("grad_norm", "learning_rate", "tokens_per_second")
EXACT = ("learning_rate",)  # known for each step: nothing to smooth, and no start and end to measure
COUNTERS = ("epoch", "num_tokens")  # they only rise: the table and the tiles say how far
CLIPPED = 0.5  # share of the steps whose gradient was clipped that is worth a word
GAP = 0.1  # accuracy in training above that on kept prompts that is worth a word
FOLDED = 500  # characters of a prompt or an answer of the samples


def training_page(run: Run, metrics: list[MetricRow]) -> str:
    """The page as text (write it as UTF-8).

    Args:
        run: run.json: `created`, `config` and `objective` are needed, all else may be missing.
        metrics: the rows of metrics.jsonl; there may be none.
    """
    sections = [
        header(run, title(run), sentence(run)),
        tiles(run, metrics, ("rewards/accuracies", "reward", "loss")),
        *map(lede, observations(run, metrics)),
        ends_section(metrics, ordered(metrics)),
        curves_section(run, metrics, ordered(metrics), run.get("resumed_at") or []),
        _figures(run),
        _setup(run, metrics),
        pairs_section("Examples", ["What the labels gave, and what was left out."], run.get("examples") or []),
        _labels(run),
        notes_section(run),
        _samples(run),
        _reproduce(run),
    ]
    return page(title(run), sections)


def title(run: Run) -> str:
    """`DPO on hh-labels`."""
    names = [last_part(given["path"]) for given in run.get("labels") or []]
    names = [f"{len(names)} label stores"] if len(names) > 3 else names
    return f"{_objective(run)[0]} on {listed(names) if names else 'labels'}"


def sentence(run: Run) -> str:
    """What was trained, how and on what."""
    config = run["config"]
    train, rank = config.get("train") or {}, (config.get("lora") or {}).get("rank")
    what = f"A LoRA adapter of rank {rank} on {policy_name(run)}" if rank else f"All weights of {policy_name(run)}"
    length = f" for {run['steps']:,} step{'' if run['steps'] == 1 else 's'}" if run.get("steps") else ""
    batch = train.get("batch_size")
    unit = "pairs" if run["objective"] in PAIR_OBJECTIVES else "prompts"
    size = f" of {batch:,} {unit}" if batch and length else ""
    rewards = list(dict.fromkeys(reward_words(given) for given in run.get("labels") or []))
    by = f". The labels hold {listed(rewards)}" if rewards else ""
    return f"{what}, trained{length}{size} by {_objective(run)[1]}{by}."


def policy_name(run: Run) -> str:
    return last_part(
        (run.get("policy") or {}).get("name") or (run["config"].get("policy") or {}).get("name") or ""
    ) or ("a language model")


def reward_words(labels: dict[str, Any]) -> str:
    """What reward a label store holds, and whose: `the endogenous reward (mean) of tiny-chat`."""
    reward = labels.get("reward") or {}
    said = "a reward"
    if "aggregation" in reward:
        try:
            known = {name: reward[name] for name in RewardConfig.model_fields if name in reward}
            said = f"the endogenous reward ({named(RewardConfig.model_validate(known))})"
        except ValidationError:
            said = f"the endogenous reward ({reward['aggregation']})"
    elif kind := reward.get("kind") or reward.get("name"):
        said = f"the reward {kind}"
    return f"{said} of {last_part(str(labels['model']))}" if labels.get("model") else said


def last_part(place: str) -> str:
    """The name at the end of a path or an address; a model folder `.../x/model` keeps both of its names."""
    parts = [part for part in place.partition("?")[0].replace("\\", "/").split("/") if part]
    return "/".join(parts[-2:]) if parts[-1:] == ["model"] else "".join(parts[-1:])


def settings(run: Run) -> dict[str, Any]:
    """The settings of the run's objective, by name; none for an objective that has none."""
    objective = run["objective"]
    return run["config"].get(SECTION_OF.get(objective, objective)) or {}


def words(name: str) -> str:
    """What a metric is called."""
    if name.startswith(EVAL):
        return f"{words(name.removeprefix(EVAL))}, kept prompts"
    if (parts := name.split("/"))[0] == "rewards" and parts[-1] in ("mean", "std"):  # of one source of several
        return f"reward {'/'.join(parts[1:-1])}{', spread' if parts[-1] == 'std' else ''}"
    return WORDS.get(name) or name.replace("_", " ").replace("/", ", ")


def figure(name: str, value: float) -> str:
    """A metric's value as it is read."""
    return reading(value, is_share(name))


def is_share(name: str) -> bool:
    return name.endswith(SHARES)


def ordered(metrics: list[MetricRow], first: tuple[str, ...] = FIRST) -> list[str]:
    """Names of what was measured in training and on kept prompts (without `eval_`), as the page has them in order."""
    found = dict.fromkeys(name.removeprefix(EVAL) for name in numbers(metrics))
    others = [name for name in found if name not in (*first, *LAST, *COUNTERS)]
    return [name for name in (*first, *others, *LAST) if name in found]


def observations(run: Run, metrics: list[MetricRow]) -> list[str]:
    """What a person should see in the curves, in sentences that depend on them."""
    said = []
    if metrics and metrics[-1]["step"] < (run.get("steps") or 0):
        said.append(f"The run is not finished: this is step {metrics[-1]['step']:,} of {run['steps']:,}.")
    known = {step for step, _ in finite(metrics, "loss")}
    broken = [row["step"] for row in metrics if "loss" in row and row["step"] not in known]
    if broken:
        many = f"in {len(broken):,} steps, first in step {broken[0]:,}" if len(broken) > 1 else f"in step {broken[0]:,}"
        said.append(f"The loss was not finite {many}: try a smaller learning rate.")
    chosen, rejected = ends(metrics, "rewards/chosen"), ends(metrics, "rewards/rejected")
    if (
        chosen
        and run["objective"] in ("dpo", "ipo")
        and rejected
        and rejected[1] < chosen[1] < 0
        and chosen[1] < chosen[0]
    ):
        said.append(
            "Both rewards ended below 0: the policy finds the chosen responses less likely than the reference does, and the "
            "rejected ones still less."
        )
    train, kept = ends(metrics, "rewards/accuracies"), ends(metrics, f"{EVAL}rewards/accuracies")
    if train and kept and train[1] - kept[1] >= GAP:
        said.append(
            f"At the end {train[1]:.0%} of the training pairs are told right, but {kept[1]:.0%} of the kept ones: the policy "
            "learnt some pairs by heart."
        )
    losses = finite(metrics, f"{EVAL}loss")
    if len(losses) > 2:
        step, least = min(losses, key=lambda point: point[1])
        if least < losses[-1][1] and losses[-1][1] - least > 0.1 * (losses[0][1] - least):
            said.append(
                f"The loss on kept prompts was lowest at step {step:,} ({plain(least)}) and {plain(losses[-1][1])} at the "
                "end; best/ holds the model of that step."
            )
    limit, norms = _optimizer(run).get("max_grad_norm"), finite(metrics, "grad_norm")
    clipped = sum(norm > limit for _, norm in norms) / len(norms) if limit and norms else 0.0
    if clipped > CLIPPED:
        said.append(f"The gradient was clipped to a norm of {limit:g} in {clipped:.0%} of the steps.")
    return said


def _optimizer(run: Run) -> dict[str, Any]:
    return run["config"].get("train") or run["config"].get("rl") or {}


def header(run: Run, heading: str, said: str) -> str:
    return f"<header>{facts(run, run.get('fingerprint'))}<h1>{esc(heading)}</h1>{lede(said)}</header>"


def lede(said: str) -> str:
    return f'<p class="lede">{esc(said)}</p>'


def tiles(run: Run, metrics: list[MetricRow], names: Iterable[str], first: Iterable[tuple[str, str, str]] = ()) -> str:
    """Large figures: `first` (value, what it is, a note), then of `names` until there are two, then what it took."""
    shown = list(first)
    for name in names:
        kept = ends(metrics, EVAL + name)
        known = kept or ends(metrics, name)
        if known and len(shown) < 2:
            what = f"{words(name)}, kept prompts" if kept else words(name)
            shown.append((figure(name, known[1]), what, f"{figure(name, known[0])} at the start"))
    steps = metrics[-1]["step"] if metrics else run.get("steps")
    if steps:
        epochs = finite(metrics, "epoch")
        shown.append((f"{steps:,}", "steps", f"{epochs[-1][1]:.3g} epochs" if epochs else ""))
    if tokens := _tokens(run, metrics):
        seconds = run.get("seconds")
        pace = ends(metrics, "tokens_per_second")
        speed = f"{pace[1]:,.0f} a second" if pace else f"{tokens / seconds:,.0f} a second" if seconds else ""
        shown.append((compact(tokens), "tokens", speed))
    if run.get("seconds"):
        shown.append((duration(run["seconds"]), "time", str(run.get("device") or "")))
    drawn = "".join(
        f"<div><dt>{esc(what)}</dt><dd><b>{esc(value)}</b><small>{esc(note)}</small></dd></div>"
        for value, what, note in shown
    )
    return f'<dl class="tiles">{drawn}</dl>' if shown else ""


def ends_section(metrics: list[MetricRow], names: list[str]) -> str:
    """A table of where each metric started and ended."""
    rows = []
    for name in names:
        if name in EXACT:
            continue
        cells = []
        for key in (name, EVAL + name):
            known = ends(metrics, key)
            cells += [figure(name, value) for value in known] if known else ["", ""]
        if any(cells):
            rows.append([esc(words(name)), *cells])
    if not rows:
        return '<p class="empty">No step was taken.</p>'
    kept = any(row[3] or row[4] for row in rows)
    count = end_size(len(metrics))
    means = f"Start and end are means over the first and the last {count:,} steps"
    means += ", and over as large a share of the evaluations." if kept else "."
    said = [means if count > 1 else "The first and the last step."]
    said += ["Kept prompts are those that nothing was learnt from."] if kept else []
    head = ["", "start", "end", *(["kept, start", "kept, end"] if kept else [])]
    body = table([row if kept else row[:3] for row in rows], head)
    return section("Start and end", said, f'<div class="scroll">{body}</div>')


def curves_section(
    run: Run, metrics: list[MetricRow], names: list[str], resumed_at: list[int], folded: Sequence[str] = ()
) -> str:
    """A chart for each of `names`; those of `folded` are there for who asks for them."""
    resumed = [step for step in resumed_at if step <= max((row["step"] for row in metrics), default=0)]
    drawn, others = (_charts(run, metrics, list(of), resumed) for of in (names, folded))
    if not drawn and not others:
        return ""
    evaluated = any(name.startswith(EVAL) for name in numbers(metrics))
    two = any(name.endswith("/rejected") for name in names)
    said = "Faint: every step. Line: its neighbourhood's mean. Point at a chart to read its figures."
    more = f"<details><summary>{len(others)} more</summary>{multiples(others)}</details>" if others else ""
    return wide_section("Curves", [said], _keys(two, evaluated, bool(resumed)) + multiples(drawn) + more)


def _charts(run: Run, metrics: list[MetricRow], names: list[str], resumed: list[int]) -> list[str]:
    drawn, last = [], max((row["step"] for row in metrics), default=0)
    for name in names:
        stem, _, side = name.rpartition("/")
        if side == "rejected" and f"{stem}/chosen" in names:
            continue  # drawn with the chosen
        paired = [f"{stem}/chosen", f"{stem}/rejected"] if side == "chosen" and f"{stem}/rejected" in names else [name]
        drawn.append(_chart(run, metrics, paired, last, resumed))
    return list(filter(None, drawn))


def _keys(two: bool, evaluated: bool, resumed: bool) -> str:
    line, ring = '<path class="line {}" d="M0 5H14"/>', '<circle class="eval" cx="7" cy="5" r="3.2"/>'
    shown = [
        (two, line.format("chosen"), "chosen, and all else"),
        (two, line.format("rejected"), "rejected"),
        (evaluated, line.format("eval") + ring, "prompts kept from training"),
        (resumed, '<path class="resumed" d="M7 0V10"/>', "started again"),
    ]
    keys = "".join(
        f'<li><svg class="swatch" viewBox="0 0 14 10" aria-hidden="true">{mark}</svg>{text}</li>'
        for there, mark, text in shown
        if there
    )
    return f'<ul class="keys">{keys}</ul>' if keys else ""


def _chart(run: Run, metrics: list[MetricRow], names: list[str], last: int, resumed: list[int]) -> str:
    """The figure of one metric, or of the chosen and the rejected of one; empty where no value is finite."""
    curves, broken = [], 0
    for name in names:
        points: Points = finite(metrics, name)
        broken += sum(name in row for row in metrics) - len(points)
        side = name.rpartition("/")[2] if len(names) > 1 else ""
        curves.append(Curve(side, side, points, finite(metrics, EVAL + name), name not in EXACT))
    if not any(curve.train or curve.evaluated for curve in curves):
        return ""
    share = is_share(names[0])
    what = words(names[0]).removesuffix(" of chosen").removesuffix(", chosen") if len(names) > 1 else words(names[0])
    what = what[:1].upper() + what[1:]
    of_pairs = names[0].endswith("accuracies")
    limit = _optimizer(run).get("max_grad_norm") if names == ["grad_norm"] else None
    guide = 0.5 if of_pairs else limit or None
    outside = beyond(curves, share)
    notes = [f"Broken line: {'chance' if of_pairs else 'where it is clipped'}."] if guide is not None else []
    notes += [f"Values beyond the frame: {len(outside):,}, farthest {reading(outside[0], share)}."] if outside else []
    notes += [f"Values that are not finite: {broken:,}."] if broken else []
    below = f"<figcaption>{' '.join(map(esc, notes))}</figcaption>"
    chart = draw_curves(f"{what}: {_in_words(metrics, names)}", curves, last, resumed, guide, share)
    return f"<figure><h3>{esc(what)}</h3>{chart}{below}</figure>"


def _in_words(metrics: list[MetricRow], names: list[str]) -> str:
    said = []
    for name in names:
        for key in (name, EVAL + name):
            if known := ends(metrics, key):
                said.append(f"{words(key)} from {' to '.join(figure(name, value) for value in known)}")
    return f"{'; '.join(said)}."


def _figures(run: Run) -> str:
    given = run.get("figures") or {}
    return pairs_section("Figures", [], [[str(name).replace("_", " "), value] for name, value in given.items()])


def _setup(run: Run, metrics: list[MetricRow]) -> str:
    rows: list[list[Any]] = [["Objective", _objective(run)[0]]]
    rows += [[f"{run['objective']}, {name.replace('_', ' ')}", value] for name, value in settings(run).items()]
    resumed = run.get("resumed_at")
    again = [["Started again after step", listed([f"{step:,}" for step in resumed]) if resumed else None]]
    return setup_section(run, metrics, rows, [["Batch size", _optimizer(run).get("batch_size")]], again)


def setup_section(
    run: Run, metrics: list[MetricRow], method: list[list[Any]], batch: list[list[Any]], others: list[list[Any]]
) -> str:
    """A table of settings; `method`, `batch` and `others` are rows (name, value), those of None are left out."""
    optimizer, lora, learner = _optimizer(run), *(run["config"].get(name) or {} for name in ("lora", "learner"))
    rates = [value for _, value in finite(metrics, "learning_rate")]
    rows = [
        ["Policy", policy_name(run)],
        *method,
        ["Trained", f"LoRA, rank {lora['rank']}" if lora.get("rank") else "all weights"],
        *batch,
        ["Highest learning rate", max(rates) if rates else optimizer.get("learning_rate")],
        ["Schedule", optimizer.get("schedule")],
        ["Seed", optimizer.get("seed")],
        ["Workers", learner.get("workers")],
        ["ZeRO stage", learner.get("zero_stage")],
        ["Device", run.get("device")],
        *others,
    ]
    return pairs_section("Settings", [], [row for row in rows if row[1] is not None])


def _labels(run: Run) -> str:
    labels = run.get("labels") or []
    if not labels:
        return ""
    rows = [
        [esc(given["path"]), esc(reward_words(given)), f"<code>{esc(str(given.get('fingerprint') or '')[:12])}</code>"]
        for given in labels
    ]
    return section(
        "Labels", ["The stores that were learnt from."], table(rows, ["store", "reward", "fingerprint"], "wraps")
    )


def notes_section(run: Run) -> str:
    notes = run.get("notes") or []
    items = "".join(f"<li>{esc(note)}</li>" for note in notes)
    return section("What to know", [], f'<ul class="notes">{items}</ul>') if notes else ""


def _samples(run: Run) -> str:
    cards = []
    for sample in run.get("samples") or []:
        sides = "".join(
            f'<section class="response"><h4><b>{esc(when)}</b></h4>'
            f'<div class="answer" dir="auto">{esc(answer)}</div></section>'
            for when, answer in sample.items()
            if when != "prompt" and answer is not None
        )
        cards.append(
            f'<article class="card">{prompt_text(sample.get("prompt"))}<div class="sides">{sides}</div></article>'
        )
    said = "Answers to prompts that were not trained on, before and after."
    return wide_section("Samples", [said], "".join(cards)) if cards else ""


def prompt_text(prompt: Any) -> str:
    """Text, or messages, folded where it is long."""
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": str(prompt or "")}]
    lines = "".join(
        f'<p><b>{esc(m.get("role", ""))}</b> <span dir="auto">{esc(m.get("content", ""))}</span></p>' for m in messages
    )
    length = sum(len(str(m.get("content", ""))) for m in messages)
    body = f'<div class="prompt">{lines}</div>'
    return body if length <= FOLDED else f"<details><summary>Prompt, {length:,} characters</summary>{body}</details>"


def _reproduce(run: Run) -> str:
    fingerprints = [f"Fingerprint {run['fingerprint']}"] if run.get("fingerprint") else []
    fingerprints += [
        f"Fingerprint of {last_part(given['path'])}: {given['fingerprint']}"
        for given in run.get("labels") or []
        if given.get("fingerprint")
    ]
    said = "The same fingerprint gives the same losses: to the last bit on CPUs, but for rounding on GPUs."
    return reproduce(run, "endoreward train run.toml", said, "run.toml", fingerprints)


def pairs_section(heading: str, said: list[str], rows: Iterable[Any]) -> str:
    """A section with a table of names and values; empty without rows."""
    cells = [[esc(name), esc(_value(value))] for name, value in rows]
    return section(heading, said, table(cells)) if cells else ""


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "\N{EN DASH}"}[value]
    if isinstance(value, int):
        return minus(f"{value:,}")
    return minus(f"{value:.5g}") if isinstance(value, float) else str(value)


def _objective(run: Run) -> tuple[str, str]:
    return OBJECTIVES.get(run["objective"], (run["objective"], run["objective"]))


def _tokens(run: Run, metrics: list[MetricRow]) -> int:
    counted = finite(metrics, "num_tokens")
    return int(run.get("tokens") or (counted[-1][1] if counted else 0))


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05`."""
    if seconds < 100:
        return f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours:,}\N{NO-BREAK SPACE}h {rest:02}" if hours else f"{minutes}\N{NO-BREAK SPACE}min"

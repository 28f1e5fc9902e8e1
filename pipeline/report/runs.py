"""What the pages of both kinds of run have: the names of metrics, large figures, where curves start and end, curves.

A run is its manifest or its run.json, its metrics the rows of metrics.jsonl. Left out: anything that needs a model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from markupsafe import Markup
from pydantic import ValidationError

from pipeline.config import RewardConfig
from pipeline.report.bias import named
from pipeline.report.curves import Curve, Points, beyond, draw_curves, value_text
from pipeline.report.markup import compact, minus
from pipeline.report.page import OTHER_VERSION, Keys, Prompt, Tile
from pipeline.rl.config import RlConfig
from pipeline.store.typed import parse
from pipeline.training.config import LearningConfig, TrainConfig
from pipeline.training.documents import Run
from pipeline.training.metrics import EVAL, MetricRow, end_size, ends, finite, numbers

Config = TypeVar("Config", bound=LearningConfig)
Figure = tuple[str, Markup, str]  # a heading, a chart, and a note under it

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
LAST = ("grad_norm", "learning_rate", "tokens_per_second")
EXACT = ("learning_rate",)  # known for each step: nothing to smooth, and no start and end to measure
COUNTERS = ("epoch", "num_tokens")  # they only rise: the table and the tiles say how far


def read_config(run: Run, kind: type[Config]) -> Config:
    """What the run was told to do. Raises StoreError for a setting of another version, which this one does not know."""
    return parse(kind.model_validate, run.config, "run.json: config", OTHER_VERSION)


def learning_config(run: Run) -> LearningConfig:
    """`read_config`, of either kind of run."""
    return read_config(run, RlConfig) if run.online else read_config(run, TrainConfig)


def policy_name(run: Run) -> str:
    """What was trained, by the last part of its name."""
    return last_part(run.policy.name) or "a language model"


def reward_words(reward: Mapping[str, Any] | None, model: str | None) -> str:
    """What reward a label store holds, and whose: `the endogenous reward (mean) of tiny-chat`.

    Args:
        reward: settings of ours, or the kind of another.
    """
    reward = reward or {}
    what = "a reward"
    if "aggregation" in reward:
        try:
            known = {name: reward[name] for name in RewardConfig.model_fields if name in reward}
            what = f"the endogenous reward ({named(RewardConfig.model_validate(known))})"
        except ValidationError:
            what = f"the endogenous reward ({reward['aggregation']})"
    elif kind := reward.get("kind") or reward.get("name"):
        what = f"the reward {kind}"
    return f"{what} of {last_part(model)}" if model else what


def last_part(place: str) -> str:
    """The name at the end of a path or an address; a model folder `.../x/model` keeps both of its names."""
    parts = [part for part in place.partition("?")[0].replace("\\", "/").split("/") if part]
    return "/".join(parts[-2:]) if parts[-1:] == ["model"] else "".join(parts[-1:])


def words(name: str) -> str:
    """What a metric is called."""
    if name.startswith(EVAL):
        return f"{words(name.removeprefix(EVAL))}, kept prompts"
    if (parts := name.split("/"))[0] == "rewards" and parts[-1] in ("mean", "std"):  # of one source of several
        return f"reward {'/'.join(parts[1:-1])}{', spread' if parts[-1] == 'std' else ''}"
    return WORDS.get(name) or name.replace("_", " ").replace("/", ", ")


def figure(name: str, value: float) -> str:
    """A metric's value as it is read."""
    return value_text(value, is_share(name))


def is_share(name: str) -> bool:
    """Whether a metric is read as a percentage."""
    return name.endswith(SHARES)


def ordered(metrics: list[MetricRow], first: tuple[str, ...]) -> list[str]:
    """Names of what was measured in training and on kept prompts (without `eval_`), as the page has them in order."""
    measured = dict.fromkeys(name.removeprefix(EVAL) for name in numbers(metrics))
    others = [name for name in measured if name not in (*first, *LAST, *COUNTERS)]
    return [name for name in (*first, *others, *LAST) if name in measured]


def tiles(run: Run, metrics: list[MetricRow], names: Iterable[str], first: Iterable[Tile] = ()) -> list[Tile]:
    """Large figures: `first`, then of `names` until there are two, then what it took."""
    shown = list(first)
    for name in names:
        held_out = ends(metrics, EVAL + name)
        known = held_out or ends(metrics, name)
        if known and len(shown) < 2:
            what = f"{words(name)}, kept prompts" if held_out else words(name)
            shown.append((figure(name, known[1]), what, f"{figure(name, known[0])} at the start"))
    steps = metrics[-1]["step"] if metrics else run.steps
    if steps:
        epochs = finite(metrics, "epoch")
        shown.append((f"{steps:,}", "steps", f"{epochs[-1][1]:.3g} epochs" if epochs else ""))
    if tokens := _tokens(run, metrics):
        pace = ends(metrics, "tokens_per_second")
        rate = pace[1] if pace else tokens / run.seconds if run.seconds else None
        shown.append((compact(tokens), "tokens", "" if rate is None else f"{rate:,.0f} a second"))
    if run.seconds:
        shown.append((duration(run.seconds), "time", run.device))
    return shown


@dataclass(frozen=True)
class EndsTable:
    """Where each metric started and ended: sentences, and a table."""

    sentences: Sequence[str]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def ends_table(metrics: list[MetricRow], names: list[str]) -> EndsTable | None:
    """Where each of `names` started and ended; None where no step was taken."""
    rows = []
    for name in names:
        if name in EXACT:
            continue
        cells = []
        for key in (name, EVAL + name):
            known = ends(metrics, key)
            cells += [figure(name, value) for value in known] if known else ["", ""]
        if any(cells):
            rows.append([words(name), *cells])
    if not rows:
        return None
    evaluated = any(row[3] or row[4] for row in rows)
    count = end_size(len(metrics))
    means = f"Start and end are means over the first and the last {count:,} steps"
    means += ", and over as large a share of the evaluations." if evaluated else "."
    sentences = [means if count > 1 else "The first and the last step."]
    sentences += ["Kept prompts are those that nothing was learnt from."] if evaluated else []
    head = ["", "start", "end", *(["kept, start", "kept, end"] if evaluated else [])]
    return EndsTable(sentences, head, [row if evaluated else row[:3] for row in rows])


@dataclass(frozen=True)
class CurvesSection:
    """Charts of what was measured step by step: a legend, the charts, and those that are folded."""

    marks: Keys
    figures: Sequence[Figure]
    folded: Sequence[Figure]


def curves_section(
    run: Run, metrics: list[MetricRow], names: list[str], folded: Sequence[str] = ()
) -> CurvesSection | None:
    """A chart for each of `names`; those of `folded` are there for who asks for them. None without any."""
    last = max((row["step"] for row in metrics), default=0)
    resumed = [again.step for again in run.repeated if again.step <= last]
    drawn, others = (_charts(run, metrics, list(of), resumed) for of in (names, folded))
    if not drawn and not others:
        return None
    evaluated = any(name.startswith(EVAL) for name in numbers(metrics))
    two = any(name.endswith("/rejected") for name in names)
    return CurvesSection(_marks(two, evaluated, bool(resumed)), drawn, others)


def _charts(run: Run, metrics: list[MetricRow], names: list[str], resumed: list[int]) -> list[Figure]:
    drawn, last = list[Figure | None](), max((row["step"] for row in metrics), default=0)
    for name in names:
        stem, _, side = name.rpartition("/")
        if side == "rejected" and f"{stem}/chosen" in names:
            continue  # drawn with the chosen
        paired = [f"{stem}/chosen", f"{stem}/rejected"] if side == "chosen" and f"{stem}/rejected" in names else [name]
        drawn.append(_chart(run, metrics, paired, last, resumed))
    return [each for each in drawn if each]


def _marks(two: bool, evaluated: bool, resumed: bool) -> Keys:
    line = Markup('<path class="line {}" d="M0 5H14"/>')
    ring = line.format("eval") + Markup('<circle class="eval" cx="7" cy="5" r="3.2"/>')
    marks = [
        (two, line.format("chosen"), "chosen, and all else"),
        (two, line.format("rejected"), "rejected"),
        (evaluated, ring, "prompts kept from training"),
        (resumed, Markup('<path class="resumed" d="M7 0V10"/>'), "started again"),
    ]
    return [(mark, text) for there, mark, text in marks if there]


def _chart(run: Run, metrics: list[MetricRow], names: list[str], last: int, resumed: list[int]) -> Figure | None:
    """The figure of one metric, or of the chosen and the rejected of one; None where no value is finite."""
    curves, broken = [], 0
    for name in names:
        points: Points = finite(metrics, name)
        broken += sum(name in row for row in metrics) - len(points)
        side = name.rpartition("/")[2] if len(names) > 1 else ""
        curves.append(Curve(side, side, points, finite(metrics, EVAL + name), name not in EXACT))
    if not any(curve.train or curve.evaluated for curve in curves):
        return None
    share = is_share(names[0])
    what = words(names[0]).removesuffix(" of chosen").removesuffix(", chosen") if len(names) > 1 else words(names[0])
    what = what[:1].upper() + what[1:]
    of_pairs = names[0].endswith("accuracies")
    limit = learning_config(run).optimizer.max_grad_norm if names == ["grad_norm"] else None
    guide = 0.5 if of_pairs else limit or None
    outside = beyond(curves, share)
    notes = [f"Broken line: {'chance' if of_pairs else 'where it is clipped'}."] if guide is not None else []
    notes += (
        [f"Values beyond the frame: {len(outside):,}, farthest {value_text(outside[0], share)}."] if outside else []
    )
    notes += [f"Values that are not finite: {broken:,}."] if broken else []
    chart = draw_curves(f"{what}: {_in_words(metrics, names)}", curves, last, resumed, guide, share)
    return what, chart, " ".join(notes)


def _in_words(metrics: list[MetricRow], names: list[str]) -> str:
    parts = []
    for name in names:
        for key in (name, EVAL + name):
            if known := ends(metrics, key):
                parts.append(f"{words(key)} from {' to '.join(figure(name, value) for value in known)}")
    return f"{'; '.join(parts)}."


def settings_rows(
    run: Run, metrics: list[MetricRow], method: list[list[Any]], batch: list[list[Any]], others: list[list[Any]]
) -> list[tuple[str, str]]:
    """Settings by name; `method`, `batch` and `others` are rows (name, value), those of None are left out."""
    config = learning_config(run)
    rates = [value for _, value in finite(metrics, "learning_rate")]
    rows = [
        ["Policy", policy_name(run)],
        *method,
        ["Trained", f"LoRA, rank {config.lora.rank}" if config.lora.rank else "all weights"],
        *batch,
        ["Highest learning rate", max(rates) if rates else config.optimizer.learning_rate],
        ["Schedule", config.optimizer.schedule],
        ["Seed", config.optimizer.seed],
        ["Workers", config.learner.workers],
        ["ZeRO stage", config.learner.zero_stage],
        ["Device", run.device or None],
        *others,
    ]
    return readable([row for row in rows if row[1] is not None])


def prompt_view(prompt: Any) -> Prompt:
    """Text, or messages."""
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": str(prompt or "")}]
    texts = [(str(m.get("role", "")), str(m.get("content", ""))) for m in messages]
    return Prompt(texts, sum(len(text) for _, text in texts))


def readable(rows: Iterable[Any]) -> list[tuple[str, str]]:
    """Names and values as they are read."""
    return [(str(name), _value(value)) for name, value in rows]


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "\N{EN DASH}"}[value]
    if isinstance(value, int):
        return minus(f"{value:,}")
    return minus(f"{value:.5g}") if isinstance(value, float) else str(value)


def _tokens(run: Run, metrics: list[MetricRow]) -> int:
    counted = finite(metrics, "num_tokens")
    return int(run.tokens or (counted[-1][1] if counted else 0))


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05`."""
    if seconds < 100:
        return f"{seconds:.0f}\N{NO-BREAK SPACE}s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours:,}\N{NO-BREAK SPACE}h {rest:02}" if hours else f"{minutes}\N{NO-BREAK SPACE}min"

"""Finds a file's shape by trying: each arrangement of columns that people publish is a candidate, in a fixed order, and
the first that makes a sample of one of the file's first rows is the shape. Configured keys replace what they name.

    responses                     prompt
    chosen, rejected              a prompt column; without one, the two conversations or transcripts carry it
    response(s), completion, ...  a prompt column (`question`, `query`, `instruction` with `input`, ...)
    messages, conversations       its own leading turns
    text                          none: a corpus of plain text

A `system` column goes before the prompt in all of these but plain text, a `history` of turns between the two. Published
layouts whose columns need more than their names are in `pipeline.corpus.labels.layouts`, and what a label means is settled in
`pipeline.corpus.labels.meaning`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.corpus import columns
from pipeline.corpus import messages as read
from pipeline.corpus.columns import RawRow
from pipeline.corpus.labels import layouts
from pipeline.corpus.labels.advice import advice
from pipeline.corpus.labels.layouts import Form, Layout
from pipeline.corpus.labels.meaning import label_rule
from pipeline.corpus.labels.misreadings import RESPONSES, assignment, refuse_misread
from pipeline.corpus.labels.rules import ByScores, LabelRule
from pipeline.corpus.placing import holds_any
from pipeline.corpus.samples import Sample
from pipeline.corpus.shapes import SAMPLED, Column, Shape
from pipeline.corpus.sources import COLUMNS as IMAGES
from pipeline.corpus.sources import COUNTING
from pipeline.errors import InputError, RowError

if TYPE_CHECKING:
    from pipeline.config import InputConfig

PROMPTS = ("prompt", "question", "query", "instruction", "problem", "input")
CONTEXTS = ("input", "context")  # what an `instruction` is about
ASKED_OF = {"instruction": CONTEXTS, "question": ("context",), "query": ("context",)}
SYSTEMS = ("system", "system_prompt")
CONVERSATIONS = ("messages", "conversations")
TOOLS = ("tools",)
# Reasons that say the columns were misread; others speak of one bad row.
MISFITS = {"missing_column", "not_text", "bad_message", "bad_role", "no_prompt", "prompt_mismatch", "no_score"}
LISTED = 40  # columns named in a message


def detect(rows: Sequence[RawRow], config: InputConfig, name: str = "the input") -> Shape:
    """The shape of a file by its first rows and by the keys configured.

    A label's reading is settled here as far as these rows go; whoever reads the whole file holds every row against it
    (`ByValue.disproof`).

    Raises InputError where nothing fits, a key is in none of the rows, or what a label means is neither stated nor proven:
    it names the file, the columns that are there, what comes nearest, and the keys to give.
    """
    if not rows:
        raise InputError(f"{name}: not one row is a JSON object; if the file is one array, say --set input.format=json")
    result = _search(rows, config, name)
    if isinstance(result, Shape):
        return result
    raise InputError(_explained(name, rows, result, config))


Nearest = list[tuple[Shape, RowError]]  # shapes that fit none of the first rows, and why


def _search(rows: Sequence[RawRow], config: InputConfig, name: str) -> Shape | Nearest:
    """The shape, or what comes nearest. Raises InputError where a key or a label cannot be what it is said to be."""
    names = list(dict.fromkeys(column for row in rows for column in row))
    layout = layouts.recognised(rows, config, name)
    wanted = layouts.completed(layout, config, name) if layout else config
    for key, column in _keys(wanted):
        if not any(columns.has(row, column) for row in rows):
            raise InputError(f"{name}: input.{key} = {column!r} is in none of its first rows; columns: {_listed(rows)}")
    refuse_misread(rows, wanted, name)
    # a meaning that is stated is not the layout's, though it be the same
    known = layout if config.label_values is None else None
    base = _base(rows, names, wanted, layout, label_rule(rows, wanted, known, name))
    nearest: Nearest = []
    bearable: list[Shape] = []
    for shape in _candidates(rows, names, wanted, base):
        errors: list[RowError] = []
        for row in rows:
            try:
                sample = shape.normalise(name, 0, row)
            except RowError as error:
                errors.append(error)
                continue
            if sample.responses:
                pictured = bool(shape.images) or any("pictures" in message for message in sample.prompt)
                return replace(shape, origin=None, pictured=pictured, note=_note(shape, row, sample))
            errors += [failure.error for failure in sample.failed]
        if any(error.reason not in MISFITS for error in errors):
            bearable.append(shape)
        elif errors:
            nearest.append((shape, errors[0]))
    return replace(bearable[0], origin=None, pictured=bool(bearable[0].images)) if bearable else nearest


def _keys(config: InputConfig) -> Iterator[tuple[str, str]]:
    keys = ("prompt_key", "context_key", "history_key", "response_key", "chosen_key", "rejected_key", "messages_key")
    for key in (*keys, "label_key", "score_key", "rank_key", "image_key"):
        named = getattr(config, key)
        yield from ((key, column) for column in ([named] if isinstance(named, str) else named or []) if column)


def _base(
    rows: Sequence[RawRow], names: Sequence[str], config: InputConfig, layout: Layout | None, label: LabelRule | None
) -> Shape:
    """What all candidates share."""
    return Shape(
        (),
        system=next((column for column in SYSTEMS if column in names), None),
        turns=config.turns,
        label=label,
        tools=next((column for column in TOOLS if column in names), None),
        form=_form(rows, layout, config),
        desirable=layout.desirable if layout else None,
        layout=layout.name if layout else None,
        images=_images(rows, config),
        origin=COUNTING,
    )


def _images(rows: Sequence[RawRow], config: InputConfig) -> tuple[str, ...]:
    """The columns of pictures, as they are stated, else by their names. Where two are called so each row says which."""
    if config.image_keys is not None:
        return config.image_keys
    held = tuple(column for column in IMAGES if any(holds_any(row.get(column)) for row in rows))
    return held if len(held) == 1 else ()


def _form(rows: Sequence[RawRow], layout: Layout | None, config: InputConfig) -> Form:
    """How a layout puts its columns together; turns in lists only where there are lists."""
    if layout is None or config.prompt_key != layout.keys.get("prompt_key"):
        return ""
    if layout.form == "turn":
        return "turn" if any("turn" in row for row in rows) else ""
    if layout.form != "threads":
        return layout.form
    values = [columns.lookup(row, config.prompt_key or "") for row in rows if columns.has(row, config.prompt_key or "")]
    lists = any(isinstance(value, list) or (isinstance(value, str) and value.startswith("[")) for value in values)
    return "threads" if lists else ""


def _candidates(rows: Sequence[RawRow], names: Sequence[str], config: InputConfig, base: Shape) -> Iterator[Shape]:
    """Arrangements of the columns, likeliest first."""

    def among(known: Sequence[str]) -> list[str]:
        return [name for name in known if name in names]

    chosen = [config.chosen_key] if config.chosen_key else among(["chosen"])
    rejected = [config.rejected_key] if config.rejected_key else among(["rejected"])
    pair: list[Column] = [*((column, "chosen") for column in chosen), *((column, "rejected") for column in rejected)]
    stated: list[Column] = [(column, None) for key, column in _keys(config) if key == "response_key"]
    keyed = bool(stated or config.chosen_key or config.rejected_key)
    arrangements: list[list[Column]]
    if keyed:
        arrangements = [(pair if config.chosen_key or config.rejected_key else []) + stated]
    elif config.messages_key and not config.prompt_key:
        yield replace(base, responses=((config.messages_key, None),))
        return
    elif len(pair) == 2:  # whoever has both columns means them: nothing weaker is tried
        arrangements = [pair]
    else:
        arrangements = [[(column, None)] for column in among(RESPONSES)]
    prompt = config.prompt_key or config.messages_key
    for responses in arrangements:
        taken = [column for column, _ in responses]
        paired = base.label is not None or any(preference for _, preference in responses)
        prompts = [prompt] if prompt else among(PROMPTS + CONVERSATIONS if keyed or paired else PROMPTS)
        for name in prompts:
            if name not in taken:
                sampled = all(column in names for column in SAMPLED) and len(responses) == 1 and not paired
                shape = replace(base, responses=tuple(responses), prompt=name, sampled=sampled)
                yield beside_prompt(shape, rows, config)
        if not prompt and (keyed or paired):
            yield replace(base, responses=tuple(responses))
        if not prompt and keyed and not paired:
            yield Shape(tuple(responses), plain=True, turns=config.turns, label=base.label)
    if not keyed and not prompt and len(pair) < 2:
        yield from (replace(base, responses=((column, None),)) for column in among(CONVERSATIONS))
        yield from (Shape(((column, None),), plain=True, turns=config.turns) for column in among(["text"]))


def beside_prompt(shape: Shape, rows: Sequence[RawRow], config: InputConfig) -> Shape:
    """A shape with what goes beside its prompt: the text that is asked about, and earlier turns."""
    names = {column for row in rows for column in row}
    taken = {shape.prompt, *(column for column, _ in shape.responses)}
    about = [column for column in ASKED_OF.get(shape.prompt or "", ()) if column in names and column not in taken]
    context = next(iter(about), None) if config.context_key is None else config.context_key or None
    history = config.history_key or None
    if config.history_key is None and "history" in names and "history" not in taken:
        history = "history" if any(_is_history(row.get("history")) for row in rows) else None
    return replace(shape, context=context, history=history)


def _is_history(value: Any) -> bool:
    """Whether a column holds turns, be it as JSON text; SHP's `history` is a question."""
    return bool(value) and (isinstance(value, list) or (isinstance(value, str) and value.startswith("[[")))


def _note(shape: Shape, row: RawRow, sample: Sample) -> str:
    """What one good row holds: `text, 3 each`."""
    first = next(columns.lookup(row, column) for column, _ in shape.responses if columns.has(row, column))
    kind = "messages" if sample.conversational else "text"
    if shape.arrangement in ("carried", "conversation"):
        text = isinstance(first, str) and not read.LIST_AS_TEXT.match(first)
        kind = "transcripts that carry the prompt" if text else "conversations"
    elif shape.prompt is not None and read.is_transcript_prompt(columns.lookup(row, shape.prompt)):
        kind = "transcripts"
    elif isinstance(first, dict) and any("response_key" in response.extra for response in sample.responses):
        kind += " by name"
    if shape.layout:
        kind = f"{shape.layout}: {kind}"
    counts = Counter(response.preference for response in sample.responses)
    if isinstance(shape.label, ByScores):
        return f"{kind}, {sum(counts.values())} scored"
    if len(counts) > 1 and len(set(counts.values())) == 1:
        return f"{kind}, {next(iter(counts.values()))} each"
    return f"{kind}, {' and '.join(map(str, counts.values()))}"


def _explained(name: str, rows: Sequence[RawRow], nearest: Nearest, config: InputConfig) -> str:
    """Why no shape fits, and keys that make one: they have been tried."""
    prompt = config.prompt_key or next((column for column in PROMPTS if any(column in row for row in rows)), None)
    if nearest:
        shape, error = nearest[0]
        near = f"nearest is {shape.describe()}, but {error.detail}"
    elif prompt:
        near = f"{prompt!r} would be a prompt, but no column is known to hold a response"
    else:
        near = "no column has a name that says prompt, response, chosen and rejected, messages or text"
    keys = next((keys for keys in _advice(rows, prompt, config, nearest) if _helps(rows, config, keys, name)), None)
    remedy = "No keys make prompt and response of these rows: mend them"
    if not nearest and columns.paths(rows, (str, list)):
        remedy = (
            "Say with input.prompt_key and input.response_key which columns they are, or mend the rows where none is"
        )
    if nearest and nearest[0][1].reason == "no_prompt":
        remedy = "Give the rows a column with the prompt, or responses that are conversations and begin with it"
    if keys:
        typed = " ".join(f"--set {assignment(key, value)}" for key, value in keys.items())
        remedy = (
            f"Say it with keys, for example {typed} (there are also input.chosen_key, input.rejected_key, input.messages_key, "
            "input.score_key and input.rank_key; a dot reaches into a column)"
        )
    why = f"{name}: its columns do not say what is the prompt and what the response: {near}"
    return f"{why}. Columns: {_listed(rows)}. {remedy}"


def _advice(
    rows: Sequence[RawRow], prompt: str | None, config: InputConfig, nearest: Nearest
) -> Iterator[dict[str, Any]]:
    """Keys that may make a shape of what is there, likeliest first. Where two columns stand beside each other and another
    names the better, those."""
    if nearest:
        shape, error = nearest[0]
        beside = {"context_key": shape.context, "history_key": shape.history}
        yield from ({key: ""} for key, column in beside.items() if column and repr(column) in error.detail)
    yield from advice(rows, prompt, {config.chosen_key or "chosen", config.rejected_key or "rejected"})


def _helps(rows: Sequence[RawRow], config: InputConfig, keys: dict[str, Any], name: str) -> bool:
    """Whether keys get a person past this error, be it to the next one: what a label means."""
    try:
        return isinstance(_search(rows, config.model_copy(update=keys), name), Shape)
    except InputError:
        return "label_key" in keys


def _listed(rows: Sequence[RawRow]) -> str:
    paths = columns.paths(rows)
    return ", ".join(paths[:LISTED]) + (f" and {len(paths) - LISTED} more" if len(paths) > LISTED else "") or "none"

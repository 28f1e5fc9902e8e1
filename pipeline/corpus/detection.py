"""Finds a file's shape by trying: each arrangement of columns that people publish is a candidate, in a fixed order, and
the first that makes a sample of one of the file's first rows is the shape. Configured keys replace what they name.

    responses                     prompt
    chosen, rejected              a prompt column; without one, the two conversations or transcripts carry it
    response(s), completion, ...  a prompt column (`question`, `query`, `instruction` with `input`, ...)
    messages, conversations       its own leading turns
    text                          none: a corpus of plain text

A `system` column goes before the prompt in all of these but plain text. With `input.label_key` two response columns
are a pair, and the label says in each row which of them is chosen.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.config import InputConfig
from pipeline.corpus import columns
from pipeline.corpus.columns import Row
from pipeline.corpus.shapes import SAMPLED, Column, Shape, label_number
from pipeline.errors import InputError, RowError
from pipeline.samples import Sample

PROMPTS = ("prompt", "question", "query", "instruction", "problem", "input")
CONTEXTS = ("input", "context")  # what an `instruction` is about
SYSTEMS = ("system", "system_prompt")
CONVERSATIONS = ("messages", "conversations")
TOOLS = ("tools",)
RESPONSES = ("response", "responses", "completion", "completions", "answer", "answers", "output", "solution")
# Reasons that say the columns were misread; others speak of one bad row.
MISFITS = {"missing_column", "not_text", "bad_message", "bad_role", "no_prompt", "prompt_mismatch", "bad_label"}
LISTED = 40  # columns named in a message


def detect(rows: Sequence[Row], config: InputConfig, name: str = "the input") -> Shape:
    """The shape of a file by its first rows and by the keys configured.

    Raises InputError where nothing fits or a key is in none of the rows: it names the file, the columns that are there,
    what comes nearest, and the keys to give.
    """
    if not rows:
        raise InputError(f"{name}: not one row is a JSON object; if the file is one array, say --set input.format=json")
    names = list(dict.fromkeys(column for row in rows for column in row))
    _require_two_outputs(config, name)
    for key, given in _keys(config):
        if not any(columns.has(row, given) for row in rows):
            raise InputError(f"{name}: input.{key} = {given!r} is in none of its first rows; columns: {_listed(rows)}")
    nearest: list[tuple[Shape, RowError]] = []
    bearable: list[Shape] = []
    for shape in _candidates(names, config, _first_label(rows, config)):
        errors: list[RowError] = []
        for row in rows:
            try:
                sample = shape.normalise(name, 0, row)
            except RowError as error:
                errors.append(error)
                continue
            if sample.responses:
                return replace(shape, note=_note(shape, row, sample))
            errors += [failure.error for failure in sample.failed]
        if any(error.reason not in MISFITS for error in errors):
            bearable.append(shape)
        elif errors:
            nearest.append((shape, errors[0]))
    if bearable:
        return bearable[0]
    raise InputError(_explained(name, rows, names, nearest))


def _keys(config: InputConfig) -> Iterator[tuple[str, str]]:
    for key in ("prompt_key", "response_key", "chosen_key", "rejected_key", "messages_key", "label_key"):
        given = getattr(config, key)
        yield from ((key, each) for each in ([given] if isinstance(given, str) else given or []))


def _require_two_outputs(config: InputConfig, name: str) -> None:
    """A label chooses between two columns. Raises InputError."""
    if config.label_key is None:
        return
    if not isinstance(config.response_key, list) or len(set(config.response_key)) != 2:
        raise InputError(
            f"{name}: input.label_key = {config.label_key!r} chooses between two columns, and input.response_key is "
            f'{config.response_key!r}; name the two, for example --set \'input.response_key=["response_A", '
            '"response_B"]\''
        )
    if config.chosen_key or config.rejected_key:
        raise InputError(
            f"{name}: input.label_key says which response is chosen, and so do input.chosen_key and "
            "input.rejected_key; give one or the other"
        )


def _first_label(rows: Sequence[Row], config: InputConfig) -> int:
    """The number that names the first response: 0 where the file's first rows have such a label, else 1."""
    key = config.label_key
    return 0 if key and any(label_number(columns.lookup(row, key)) == 0 for row in rows if columns.has(row, key)) else 1


def _candidates(names: Sequence[str], config: InputConfig, first_label: int) -> Iterator[Shape]:
    """Arrangements of the columns, likeliest first."""

    def among(known: Sequence[str]) -> list[str]:
        return [name for name in known if name in names]

    system = next(iter(among(SYSTEMS)), None)
    tools = next(iter(among(TOOLS)), None)
    base = Shape((), system=system, turns=config.turns, label=config.label_key, first_label=first_label, tools=tools)
    chosen = [config.chosen_key] if config.chosen_key else among(["chosen"])
    rejected = [config.rejected_key] if config.rejected_key else among(["rejected"])
    pair: list[Column] = [*((column, "chosen") for column in chosen), *((column, "rejected") for column in rejected)]
    given: list[Column] = [(column, None) for key, column in _keys(config) if key == "response_key"]
    keyed = bool(given or config.chosen_key or config.rejected_key)
    arrangements: list[list[Column]]
    if keyed:
        arrangements = [(pair if config.chosen_key or config.rejected_key else []) + given]
    elif config.messages_key and not config.prompt_key:
        yield replace(base, responses=((config.messages_key, None),))
        return
    else:
        arrangements = [pair] if len(pair) == 2 else []
        arrangements += [[(column, None)] for column in among(RESPONSES)]
    prompt = config.prompt_key or config.messages_key
    for responses in arrangements:
        taken = [column for column, _ in responses]
        paired = config.label_key is not None or any(preference for _, preference in responses)
        prompts = [prompt] if prompt else among(PROMPTS + CONVERSATIONS if keyed or paired else PROMPTS)
        for name in prompts:
            if name not in taken:
                about = among(CONTEXTS) if name == "instruction" and not prompt else []
                context = next((column for column in about if column not in taken), None)
                sampled = all(column in names for column in SAMPLED) and len(responses) == 1 and not paired
                yield replace(base, responses=tuple(responses), prompt=name, context=context, sampled=sampled)
        if not prompt and (keyed or paired):
            yield replace(base, responses=tuple(responses))
        if not prompt and keyed and not paired:
            yield Shape(tuple(responses), plain=True, turns=config.turns)
    if not keyed and not prompt:
        yield from (replace(base, responses=((column, None),)) for column in among(CONVERSATIONS))
        yield from (Shape(((column, None),), plain=True, turns=config.turns) for column in among(["text"]))


def _note(shape: Shape, row: Row, sample: Sample) -> str:
    """What one good row holds: `text, 3 each`."""
    first = next(columns.lookup(row, column) for column, _ in shape.responses if columns.has(row, column))
    kind = "messages" if sample.conversational else "text"
    if shape.prompt is None and not shape.plain:
        kind = "transcripts that carry the prompt" if isinstance(first, str) else "conversations"
    elif isinstance(first, dict) and any(response.extra for response in sample.responses):
        kind += " by name"
    if shape.first_label == 0:
        kind += " labelled from 0"
    counts = Counter(response.preference for response in sample.responses)
    if len(counts) > 1 and len(set(counts.values())) == 1:
        return f"{kind}, {next(iter(counts.values()))} each"
    return f"{kind}, {' and '.join(map(str, counts.values()))}"


def _explained(name: str, rows: Sequence[Row], names: Sequence[str], nearest: list[tuple[Shape, RowError]]) -> str:
    """Why no shape fits, and the keys that would make one."""
    texts = columns.paths(rows, (str, list))
    prompt = next((column for column in PROMPTS if column in names), None)
    if nearest:
        shape, error = nearest[0]
        near = f"nearest is {shape.describe()}, but {error.detail}"
    elif prompt:
        near = f"{prompt!r} would be a prompt, but no column is known to hold a response"
    else:
        near = "no column has a name that says prompt, response, chosen and rejected, messages or text"
    first = prompt or next(iter(texts), "COLUMN")
    others = [path for path in texts if path != first]
    response = next((path for path in others if path.split(".")[-1] in RESPONSES), next(iter(others), "COLUMN"))
    return (
        f"{name}: its columns do not say what is the prompt and what the response: {near}. Columns: {_listed(rows)}. "
        f"Say it with keys, for example --set input.prompt_key={first} --set input.response_key={response} (there are "
        "also input.chosen_key, input.rejected_key and input.messages_key; a dot reaches into a column)"
    )


def _listed(rows: Sequence[Row]) -> str:
    found = columns.paths(rows)
    return ", ".join(found[:LISTED]) + (f" and {len(found) - LISTED} more" if len(found) > LISTED else "") or "none"

"""Preference pairs as trainers' own loaders read them, with rewards and margin.

Of TRL 1.16, OpenRLHF 0.11, verl 0.9 and axolotl 0.19. A pair that a loader would read as something else is left out, and the
reason is counted; `trl` can say them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.stores.finalize import stored_tokenizer
from pipeline.errors import ConfigError, StoreError
from pipeline.store import LabelStore
from pipeline.store.manifest import Manifest
from pipeline.store.pairs import MESSAGES, PREFERENCES

Pair = dict[str, Any]
Convert = Callable[[Pair], Pair | str]  # a pair as `preference_pairs` gives it; else a reason

KNOWLEDGE = [PREFERENCES.field(i) for i in range(PREFERENCES.get_field_index("chosen_reward"), len(PREFERENCES))]
ENDINGS = (".parquet", ".jsonl")
ENDINGS_OF = {"verl": (".parquet",)}  # formats whose loader reads fewer
DIFFERENT = "their conversations differ before the last turn, for which the format has no place"


@dataclass(frozen=True)
class Format:
    """How a pair is written.

    Args:
        schema: of a Parquet file.
        advice: a sentence for whoever reads the file with that trainer.
        extra: columns of the chosen response's label that `convert` reads besides.
    """

    schema: pa.Schema
    convert: Convert
    advice: str
    extra: Sequence[str] = ()


def _openrlhf(pair: Pair) -> Pair | str:
    return pair if pair["prompt"] else "they have no message in common as a prompt, and OpenRLHF cuts one off each side"


def _axolotl(pair: Pair) -> Pair | str:
    for message in (*pair["prompt"], *pair["chosen"], *pair["rejected"]):
        if message.keys() - {"role", "content"}:
            return "a message has more than a role and a content, of which axolotl's strategy reads no more"
    if len(pair["chosen"]) != 1 or len(pair["rejected"]) != 1:
        return DIFFERENT
    [chosen], [rejected] = pair["chosen"], pair["rejected"]
    return {"messages": pair["prompt"], "chosen": chosen, "rejected": rejected, **_known(pair)}


def _verl(tokenizer: Any) -> Convert:
    """Texts, each tokenised by itself: the prompt as the model saw it."""

    def convert(pair: Pair) -> Pair | str:
        if len(pair["chosen"]) != 1 or len(pair["rejected"]) != 1:
            return DIFFERENT
        ids = pair["prompt_token_ids"]
        if ids is None:
            return "the store does not have the tokens of its prompts"
        text = tokenizer.decode(ids, skip_special_tokens=False)
        without = text.removeprefix(tokenizer.bos_token or "")  # where the tokenizer puts one in front by itself
        prompt = next((each for each in (text, without) if tokenizer(each)["input_ids"] == list(ids)), None)
        if prompt is None:
            return "the text of their prompt does not read as its tokens"
        sides = {side: pair[side][0]["content"] for side in ("chosen", "rejected")}
        return {"prompt": prompt, **sides, **_known(pair)}

    return convert


def _known(pair: Pair) -> Pair:
    return {field.name: pair[field.name] for field in KNOWLEDGE}


def _plain(store: LabelStore) -> Format:
    return Format(
        PREFERENCES,
        lambda pair: pair,
        "TRL's RewardTrainer takes margin into its loss where the column is there; drop it if you do not want that.",
    )


def _of_openrlhf(store: LabelStore) -> Format:
    return Format(
        PREFERENCES,
        _openrlhf,
        "Read with --data.prompt_key prompt --data.chosen_key chosen --data.rejected_key rejected "
        "--data.apply_chat_template; its reward models take margin into their loss, its DPO does not.",
    )


def _of_axolotl(store: LabelStore) -> Format:
    message = MESSAGES.value_type
    schema = pa.schema([("messages", MESSAGES), ("chosen", message), ("rejected", message), *KNOWLEDGE])
    return Format(schema, _axolotl, "Read with `rl: dpo` and `type: chat_template.default`; margin is a column beside.")


def _of_verl(store: LabelStore) -> Format:
    try:
        tokenizer = stored_tokenizer(store, Manifest.of_finished(store))
    except ConfigError as error:
        raise StoreError(f"{error}; --format trl needs no tokenizer") from None
    schema = pa.schema([("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string()), *KNOWLEDGE])
    advice = "Read by verl's RMDataset, which puts an end token behind each response; margin is a column beside."
    return Format(schema, _verl(tokenizer), advice, ("prompt_token_ids",))


FORMATS: dict[str, Callable[[LabelStore], Format]] = {
    "trl": _plain,
    "openrlhf": _of_openrlhf,
    "verl": _of_verl,
    "axolotl": _of_axolotl,
}


def pairs_table(rows: Sequence[Pair], schema: pa.Schema) -> pa.Table:
    """Rows of a Parquet file. Raises StoreError for a message that has more than role and content."""
    for row in rows:
        for message in _messages(row):
            more = sorted(message.keys() - {"role", "content"})
            if more:
                raise StoreError(
                    f"{row['prompt_id']}: a message has {' and '.join(more)}, for which a .parquet file of this format "
                    "has no column; give an --output that ends in .jsonl"
                )
    return pa.Table.from_pylist(list(rows), schema=schema)


def _messages(row: Pair) -> list[dict[str, Any]]:
    values = [row[name] for name in ("prompt", "chosen", "rejected") if isinstance(row.get(name), list)]
    return [message for value in values for message in value]

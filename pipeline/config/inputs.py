"""Where a corpus is, and what its columns mean."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import Place, Section, Unread


class InputConfig(Section):
    """The corpus and how to read it. Keys are column names; `a.b` reaches into a nested column."""

    paths: list[Place] = Field(default=[], description="files, folders, globs, s3://, gs://, hf://datasets/...")
    format: Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "arrow"] = Field(
        default="auto", description="by file name; .gz and .zst are unpacked"
    )
    config: str | None = Field(
        default=None, description="which configuration of a folder that holds several: a name, or a glob pattern"
    )
    split: str | None = Field(
        default=None, description="which split of a folder that holds several: a name, or a glob pattern"
    )
    prompt_key: str | None = Field(default=None, description="column of the prompt: text or a list of messages")
    response_key: str | list[str] | None = Field(
        default=None, description="column of the response or responses; several columns give several responses"
    )
    chosen_key: str | None = Field(default=None, description="column of the preferred response or responses")
    rejected_key: str | None = Field(default=None, description="column of the other response or responses")
    messages_key: str | None = Field(default=None, description="column of a whole conversation")
    context_key: str | None = Field(
        default=None,
        description="column that follows the prompt; default: beside instruction and question; '' for none",
    )
    history_key: str | None = Field(
        default=None, description="column of earlier turns; default: history where it holds a list; '' for none"
    )
    layout: str | None = Field(
        default=None, description="a published layout by name; default: recognised by its columns"
    )
    label_key: str | list[str] | None = Field(
        default=None,
        description="column that names the better of the responses of response_key, or columns of which one holds 1",
    )
    label_values: dict[str, str] | None = Field(
        default=None,
        description='what a label means: value = response column (its position from 0 in a list), or "tie"',
    )
    label_threshold: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="the label is a number: above this label_above is better, below the other",
    )
    label_above: str | None = Field(
        default=None, description="the response column that a label above label_threshold prefers"
    )
    label_tie: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="a label this near to label_threshold is a tie"
    )
    score_key: str | list[str] | None = Field(
        default=None, description="column of the responses' scores, or one for each response column; higher is better"
    )
    rank_key: str | list[str] | None = Field(
        default=None, description="column of the responses' ranks, or one for each response column; lower is better"
    )
    pairs_from: Literal["best_worst", "best_rest", "threshold", "all"] | None = Field(
        default=None,
        description="which responses scores or ranks prefer; default: none, they are kept beside the responses",
    )
    score_threshold: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="pairs_from = threshold: scores from here on (ranks to here) are chosen",
    )
    min_margin: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="scores or ranks of a pair differ by more than this"
    )
    image_key: str | list[str] | None = Field(
        default=None, description="column or columns of the prompt's pictures; default: image or images"
    )
    picture_root: Place | None = Field(
        default=None, description="folder that pictures' paths are below; default: that of the corpus file"
    )
    picture_urls: bool = Field(default=False, description="fetch pictures that are given as http(s) addresses")
    pictures: Literal["given", "grey", "other"] = Field(
        default="given",
        description="what prompts show: their own pictures, or as a control grey ones of the same size or another row's",
    )
    max_picture_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=178_956_970,  # beyond which Pillow refuses
        description="a picture of more pixels is an error row, and is not decoded",
    )
    max_picture_bytes: int = Field(
        default=20 << 20, ge=1, description="a picture of more bytes is an error row, and is not read"
    )
    turns: Literal["last", "all"] = Field(
        default="last", description="score the last assistant turn of a response, or every one (a label each)"
    )
    shard_rows: int = Field(default=128, ge=1, description="input rows in one unit of commit, at most")
    shard_bytes: int = Field(
        default=1 << 19,
        ge=1,
        description="bytes of input, as they are unpacked, from which on a unit of commit ends whatever its rows: what a kill "
        "costs; of Parquet, CSV and Arrow by the mean of the rows about it",
    )

    @property
    def image_keys(self) -> tuple[str, ...] | None:
        """The columns that are stated to hold pictures; None where nothing is."""
        stated = self.image_key
        return None if stated is None else (stated,) if isinstance(stated, str) else tuple(stated)

    @model_validator(mode="after")
    def _label_is_read_one_way(self) -> Self:
        if self.label_values is not None and self.label_threshold is not None:
            raise ValueError("give label_values or label_threshold, not both: a label is a name or a number")
        if (self.label_threshold is None) != (self.label_above is None):
            raise ValueError(
                "label_threshold and label_above belong together: which response is better above the threshold"
            )
        if self.label_tie and self.label_threshold is None:
            raise ValueError("label_tie is the band around label_threshold; give that too")
        return self

    @model_validator(mode="after")
    def _scores_are_used_one_way(self) -> Self:
        if self.score_key is not None and self.rank_key is not None:
            raise ValueError("give score_key or rank_key, not both")
        scored = self.score_key is not None or self.rank_key is not None
        if scored and self.label_key is not None:
            raise ValueError(
                "label_key says which response is better, and so do scores or ranks; give one or the other"
            )
        if (self.pairs_from == "threshold") != (self.score_threshold is not None):
            raise ValueError("score_threshold and pairs_from = threshold belong together")
        if self.min_margin and self.pairs_from is None:
            raise ValueError("min_margin is of pairs from scores or ranks; give pairs_from too")
        return self


MEANINGS = (
    "label_key", "label_values", "label_threshold", "label_above", "label_tie", "score_key", "rank_key", "pairs_from",
    "score_threshold", "min_margin",
)  # fmt: skip
"""Fields of `input` that say which response is better."""


PICTURES = ("image_key", "picture_root", "picture_urls", "pictures", "max_picture_pixels", "max_picture_bytes")
"""Fields of `input` that say of pictures what they are."""


def unread_of_prompts() -> Unread:
    for field in PICTURES:
        yield f"input.{field}", "where a policy is asked with text alone; leave it out"
    for field in ("turns", *MEANINGS):
        yield f"input.{field}", "where only prompts are read; leave it out"

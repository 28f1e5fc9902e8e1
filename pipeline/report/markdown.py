"""results.md: what results.json holds as Markdown, with tables that read well as text."""

from pipeline.evaluation.documents import Results, RewardEntry
from pipeline.report import findings
from pipeline.report.bias import bias_columns
from pipeline.report.markup import minus
from pipeline.report.shares import figure_text, interval_text

IN_MARKDOWN = (  # columns of the bias table
    "at equal length",
    "chosen longer",
    "chosen shorter",
    "longer wins",
    "longer is chosen",
    "correlation with length",
)


def results_markdown(results: Results) -> str:
    """The text of results.md: figures, cost, comparisons, bias and notes, with tables that read well as text."""
    rewards, names = results.rewards, findings.figure_names(results)
    figures = [[reward.name, *_with_intervals(reward, results)] for reward in rewards]
    columns = findings.cost_columns(rewards)
    counts = [[reward.name, *(read(reward) for read in columns.values())] for reward in rewards]
    failed = [f"- {name}: {findings.as_sentence(why)}" for name, why in results.failed.items()]
    notes = [*findings.notes(results), *findings.incomplete_sentences(rewards)]
    blocks = [
        f"# {results.benchmark}",
        findings.about(results),
        findings.verdict(results),
        " ".join(findings.cut_short(rewards)),
        *(["## Without figures", "\n".join(failed), "## Figures"] if failed else []),
        _text_table(["reward", *map(findings.words, names)], figures),
        "\n".join(findings.tie_rules(rewards)),
        _text_table(["reward", *columns], counts),
        *_sets(results),
        *_comparisons(results),
        *_pictures(results),
        *_bias(results),
        *(["## Notes", "\n".join(f"- {note}" for note in notes)] if notes else []),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _sets(results: Results) -> list[str]:
    head, rows = findings.set_rows(results)
    return ["## By set", _text_table(head, [[row[0], *map(_cell, row[1:])] for row in rows])] if rows else []


def _pictures(results: Results) -> list[str]:
    rows = findings.picture_rows(results)
    sentences = " ".join(findings.picture_sentences(results))
    return ["## What the picture explains", sentences, _text_table(findings.PICTURE_HEAD, rows)] if rows else []


def _comparisons(results: Results) -> list[str]:
    if not results.comparisons:
        return []
    shares, rows = findings.share_figures(results), []
    for each in results.comparisons:
        names = [each.first, each.second, findings.words(each.figure)]
        values = [findings.p_value(p) for p in (each.p_value, each.p_holm)]
        rows.append([*names, *findings.difference(each, shares), *values])
    head = ["first", "second", "figure", "difference", "95%", "p", "p (Holm)"]
    return ["## Comparisons", findings.meaning_of_p(results), _text_table(head, rows, names=3)]


def _bias(results: Results) -> list[str]:
    biases = findings.biases(results)
    if not biases:
        return []
    head, cells = bias_columns(biases, IN_MARKDOWN)
    rows = [[name, *map(_cell, row)] for (name, _), row in zip(biases, cells, strict=True)]
    lines = [f"- {name}: {minus(' '.join(bias.summary))}" for name, bias in biases]
    return ["## Bias", _text_table(["reward", *head], rows), "\n".join(lines)]


def _cell(pair: tuple[str, str]) -> str:
    """A figure, and in brackets what stands under it on the page."""
    return f"{pair[0]} ({pair[1]})" if pair[1] else pair[0]


def _with_intervals(reward: RewardEntry, results: Results) -> list[str]:
    shares, cells = findings.share_figures(results), []
    for name in findings.figure_names(results):
        within = interval_text(reward.intervals.get(name), name in shares)
        cells.append(figure_text(reward.values.get(name), name in shares) + (f" ({within})" if within else ""))
    return cells


def _text_table(head: list[str], rows: list[list[str]], names: int = 1) -> str:
    """A Markdown table whose columns line up as text: the first `names` to the left, numbers to the right."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]

    def line(row: list[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(row[:names], widths[:names], strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(row[names:], widths[names:], strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(f"-{'-' * width}{':' if i >= names else '-'}" for i, width in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])

"""Rewards in a few lines of Python, without Ray: for a notebook, a test, or a machine that has only torch and transformers.

    python examples/score_without_ray.py
    python examples/score_without_ray.py --model MODEL --prompt "Is water wet?" --response Yes --response No

It makes the labels that `endoreward label` writes, one response at a time, and prints them.
"""

import argparse

from pipeline.config import ModelConfig, RewardConfig, TokensConfig
from pipeline.corpus.samples import Turn, turn_id
from pipeline.errors import RowError
from pipeline.models.loading import context_length, load_model, load_settings, load_tokenizer
from pipeline.models.scoring import Scorer
from pipeline.rewards.labelling import label
from pipeline.tokens import Renderer


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the reward of some responses to one prompt.")
    parser.add_argument("--model", default="examples/addition/model", help="a local folder or a model hub's name")
    parser.add_argument("--prompt", default="345+678=")
    parser.add_argument(
        "--response",
        action="append",
        help="repeatable; default: a right worked addition, and one with a wrong step",
    )
    arguments = parser.parse_args()
    responses = arguments.response or [
        "5+8+0=13;4+7+1=12;3+6+1=10;1023",
        "5+8+0=13;4+7+1=11;3+6+1=10;1013",
    ]

    # 1. The model and its tokenizer. `Scorer` takes any Hugging Face causal LM, so yours may come from anywhere.
    source = ModelConfig(name=arguments.model)
    tokenizer = load_tokenizer(source)
    reward = RewardConfig(aggregation="sum")
    renderer = Renderer(tokenizer, TokensConfig(), context_length(load_settings(source), tokenizer))
    scorer = Scorer(load_model(source, "cpu"), alpha=reward.alpha)

    # 2. Which tokens are the prompt and which are scored.
    turns = [
        Turn(
            id=turn_id("mine:0", None, index, 0),
            prompt_id="mine:0",
            preference=None,
            response_index=index,
            turn=0,
            prompt=[{"role": "user", "content": arguments.prompt}],
            response=response,
            conversational=renderer.template is not None,
            rubric=None,
            extra={},
        )
        for index, response in enumerate(responses)
    ]
    tokens = [renderer.tokenize(turn) for turn in turns]

    # 3. One forward for all of them, the shared prompt computed once; then labels, which are the rows of a label store.
    print(f"{'reward':>10} {'log pi':>10} {'V(s_1)':>9} {'tokens':>6}  response")
    for turn, seen, scores in zip(turns, tokens, scorer.score(tokens), strict=True):
        if isinstance(scores, RowError):
            print(f"cannot be scored: {scores}")
            continue
        row = label(turn, seen, scores, reward)
        log_pi, first_value = float(row.token_logprobs.sum()), float(row.token_values[0])
        print(f"{row.reward:10.3f} {log_pi:10.3f} {first_value:9.3f} {row.num_tokens:6d}  {row.response}")


if __name__ == "__main__":
    main()

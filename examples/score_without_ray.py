"""Rewards in a few lines of Python, without Ray: for a notebook, a test, or a machine without a cluster (docs/python.md).

    python examples/score_without_ray.py
    python examples/score_without_ray.py --model MODEL --prompt "Is water wet?" --response Yes --response No

It makes the labels that `endoreward label` writes, and prints them.
"""

import argparse

import endoreward


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

    scorer = endoreward.Scorer.from_pretrained(arguments.model)
    print(f"{'reward':>10} {'log pi':>10} {'V(s_1)':>9} {'tokens':>6}  response")
    for scored in scorer.score(arguments.prompt, responses):
        first_value = float(scored.token_values[0])
        print(
            f"{scored.reward:10.3f} {scored.logprob:10.3f} {first_value:9.3f} {scored.num_tokens:6d}  {scored.response}"
        )


if __name__ == "__main__":
    main()

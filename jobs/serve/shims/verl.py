"""endoreward as a reward manager of verl. Checked with verl 0.9.1.

The reward of the tokens that the policy wrote, on verl's streaming path, at the last token:

    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=/PLACE/OF/THIS/FILE.py
    reward.reward_manager.name=EndorewardManager

and ENDOREWARD_URL (ENDOREWARD_TOKEN, ENDOREWARD_MODEL) in the environment of its Ray workers. The server's model needs the
policy's tokenizer.

The reward of each token exists on verl's colocated path alone. There verl starts an engine for reward.reward_model.model_path,
which is then not asked, because a custom reward function is set:

    reward.reward_manager.name=EndorewardTokenManager                       with source and module.path as above
    reward.reward_model.enable=True reward.reward_model.enable_resource_pool=False
    reward.custom_reward_function.path=/PLACE/OF/THIS/FILE.py

`compute_score` as a reward function by itself gets no prompt from verl, and a reward of ours is one of a response to a prompt:
it works where the data have the prompt in extra_info["prompt"], and refuses otherwise.
"""

import asyncio
import json
import os
import time
import urllib.error
import urllib.request

import torch
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

# client.py


class EndorewardManager(RewardManagerBase):
    """Asks for one response at a time; the server fills its batches with those that come together."""

    include = ()  # what the server returns beside the reward

    def __init__(self, config, tokenizer, compute_score, reward_router_address=None, reward_model_tokenizer=None):
        super().__init__(config, tokenizer, compute_score)

    async def run_single(self, data):
        row = await asyncio.to_thread(self.row, data)
        return {"reward_score": row["reward"], "reward_extra_info": {"endogenous_reward": row["reward"]}}

    def row(self, data):
        """The server's answer to the last sequence of `data`, as verl's own managers take it."""
        batch = data[-1:].batch
        prompt, response = tokens_of({name: batch[name][0] for name in ("prompts", "responses", "attention_mask")})
        ids = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
        if ids != prompt + response:
            raise RuntimeError(
                "prompts and responses do not add up to input_ids: several sequences, padded by each other"
            )
        [row] = ask([{"prompt_token_ids": prompt, "response_token_ids": [response]}], self.include)
        return row


class EndorewardTokenManager(EndorewardManager):
    """The reward of each token; with aggregation `sum` they sum to the reward of the response."""

    include = ("token_rewards",)

    def __init__(self, config, tokenizer, compute_score, reward_router_address=None, reward_model_tokenizer=None):
        super().__init__(config, tokenizer, compute_score)
        model = config.reward.reward_model
        if not model.enable or model.enable_resource_pool or config.reward.custom_reward_function.path is None:
            raise ValueError(
                "token rewards exist on verl's colocated path alone: set reward.reward_model.enable=True, "
                "reward.reward_model.enable_resource_pool=False and reward.custom_reward_function.path to this file, "
                "or take EndorewardManager"
            )

    async def run_single(self, data):
        row = await asyncio.to_thread(self.row, data)
        return {"reward_score": row["token_rewards"], "reward_extra_info": {"endogenous_reward": row["reward"]}}

    @classmethod
    def assemble_rm_scores(cls, data, scores):
        """[B, R] of lists of token rewards, 0 behind each."""
        rewards = torch.zeros_like(data.batch["responses"], dtype=torch.float32)
        for place, tokens in enumerate(scores):
            rewards[place, : len(tokens)] = torch.tensor(tokens)
        return rewards


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    """The reward of the text; verl leaves special tokens out of it, so the end of the response is the tokenizer's."""
    prompt = (extra_info or {}).get("prompt")
    if prompt is None:
        raise ValueError(
            "verl gives compute_score no prompt, without which a response has no endogenous reward: put it into "
            'extra_info["prompt"], or take the reward manager of this file'
        )
    messages = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
    [row] = ask([{"prompt": messages, "responses": [solution_str]}])
    return row["reward"]


def tokens_of(item):
    """The tokens of a prompt, padded on the left, and of a response, padded on the right."""
    width, mask = len(item["prompts"]), item["attention_mask"].bool()
    return item["prompts"][mask[:width]].tolist(), item["responses"][mask[width:]].tolist()

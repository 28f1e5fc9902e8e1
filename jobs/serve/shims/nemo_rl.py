"""endoreward as an environment of NeMo-RL. Read at source (0.7.0, nemo_rl.environments.interfaces); it has not run here.

Save it as endoreward_nemo_rl.py on the import path, call `register()` before the run script makes its environments, and say

    env:
      endoreward:
        templated: true   # contents went through the chat template already, as NeMo-RL's data processors do it

with `env_name: endoreward` at the data. ENDOREWARD_URL (ENDOREWARD_TOKEN, ENDOREWARD_MODEL) in the environment says where the
server is. The last message of each log is scored, given those before it; the episode ends.
"""

import json
import os
import time
import urllib.error
import urllib.request

import ray
import torch
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn

# client.py

CLASS = "endoreward_nemo_rl.EndorewardEnvironment"


class Environment(EnvironmentInterface):
    def __init__(self, config=None):
        self.templated = (config or {}).get("templated", True)

    def step(self, message_log_batch, metadata):
        rows = ask([self._input(log) for log in message_log_batch])
        count = len(message_log_batch)
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""} for _ in range(count)],
            metadata=[None] * count,
            next_stop_strings=[None] * count,
            rewards=torch.tensor([row["reward"] for row in rows], dtype=torch.float32),
            terminateds=torch.ones(count, dtype=torch.bool),
            answers=[log[-1]["content"] for log in message_log_batch],
        )

    def global_post_process_and_metrics(self, batch):
        return batch, {}

    def _input(self, log):
        *before, last = log
        responses = [last["content"]]
        if self.templated:
            text = "".join(message["content"] for message in before)
            return {"prompt": text, "responses": responses, "as_written": True}
        return {"prompt": [{"role": m["role"], "content": m["content"]} for m in before], "responses": responses}


EndorewardEnvironment = ray.remote(Environment)


def register():
    from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
    from nemo_rl.environments.utils import register_env

    ACTOR_ENVIRONMENT_REGISTRY[CLASS] = PY_EXECUTABLES.SYSTEM
    register_env("endoreward", CLASS)

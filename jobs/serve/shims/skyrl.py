"""endoreward as an environment of SkyRL. Read at source (August 2026, skyrl_gym.envs.base_text_env); it has not run here.

Save it as endoreward_skyrl.py on the import path, register it where training starts, and give the rows of the data
env_class = "endoreward":

    import skyrl_gym

    skyrl_gym.register(id="endoreward", entry_point="endoreward_skyrl:EndorewardEnv")

ENDOREWARD_URL (ENDOREWARD_TOKEN, ENDOREWARD_MODEL) in the environment says where the server is. One turn: the prompt goes
through the server's chat template, the answer is its text, and its reward stands at the last token. Rewards of tokens need a
GeneratorInterface of your own, whose `rewards` may be a list for each response: POST /v1/rewards has them as
`token_rewards`.
"""

import json
import os
import time
import urllib.error
import urllib.request

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

# client.py


class EndorewardEnv(BaseTextEnv):
    def __init__(self, env_config=None, extras=None):
        super().__init__()
        self.prompt = None

    def init(self, prompt):
        self.prompt = [{"role": message["role"], "content": message["content"]} for message in prompt]
        return prompt, {}

    def step(self, action):
        if self.prompt is None:
            raise RuntimeError("step before init: the reward of an answer is one to a prompt")
        self.turns += 1
        [row] = ask([{"prompt": self.prompt, "responses": [action]}])
        return BaseTextEnvStepOutput(observations=[], reward=row["reward"], done=True, metadata={})

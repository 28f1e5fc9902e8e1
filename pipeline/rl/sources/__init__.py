"""What a response is worth: the weighted mixture of rewards of an online run. Knows no Ray.

    rewarder = RewardMixture(config, "cuda", "bfloat16", hold_reference=True)
    rewarded = rewarder.reward([(prompt, rollouts), ...])       # a list for each prompt, one Rewarded for each response

base        what a source is and what it gives
models      the models in memory, and what each of them sees of a response
endogenous, relative, teacher, certainty, maths, function, length      the sources, one file each
mixture     their weighted sum; what can be checked before any weights are loaded
"""

from pipeline.rl.sources.mixture import RewardMixture, check_prompts, check_rewards, checker

__all__ = ["RewardMixture", "check_prompts", "check_rewards", "checker"]

"""`rl`: a policy optimised on the rewards of its own responses."""

"""Online RL: what a policy's own samples are worth, and what it learns from them. Knows no Ray."""

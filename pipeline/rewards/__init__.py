"""Rewards of responses: the endogenous one as mathematics, the labellers that ask models, and what stored columns give."""

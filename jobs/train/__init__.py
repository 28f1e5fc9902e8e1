"""`train`: a policy optimised on stored labels."""

"""Models in this process: loading them, and what they answer to requests (scores, classes, completions)."""

"""Answers that were given before: to the same question, or to one that means the same."""

"""What members said, in one book: who takes part, what is final, who broke the rules. Pure; no IO, no clock."""

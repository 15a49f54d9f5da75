"""What comes of a closed round, and whether members said so: proved, refuted and by whom, or not decidable."""

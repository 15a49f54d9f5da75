"""What agents remember: of a run, of what they did, of what they were told, of the adapters they learnt."""

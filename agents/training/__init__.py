"""What a training is made of, but for the mathematics: data, splits, packing, schedules, runs on disk. Torch-free."""

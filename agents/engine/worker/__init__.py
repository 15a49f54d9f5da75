"""The worker: the only folder that imports torch. Spawned as `python -m agents.engine.worker`, never imported."""

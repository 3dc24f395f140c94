"""The one training loop of the project, its checkpoints, caches and losses."""

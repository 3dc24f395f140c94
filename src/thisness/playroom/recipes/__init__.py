"""How each embedded model is trained: one file a model, all through `thisness.training`."""

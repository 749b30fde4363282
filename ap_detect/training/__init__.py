"""Training and evaluation of a run: the only place, beside commands, that reads configs."""

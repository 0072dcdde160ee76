"""How the students are trained together: settings, training step, optimizers, checkpoints, curves."""

"""The students' life together: settings, step, optimizers, checkpoints, curves."""

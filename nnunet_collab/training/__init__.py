"""The students' life together: settings, step, optimisers, checkpoints, curves."""

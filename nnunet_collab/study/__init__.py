"""A fair comparison in one command: arms x seeds, trained equally, predicted, evaluated and reported."""

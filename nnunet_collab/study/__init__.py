"""A fair comparison in one command: arms x seeds, trained alike, predicted, evaluated and reported."""

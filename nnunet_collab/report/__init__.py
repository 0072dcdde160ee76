"""One page that compares methods: scores with intervals and tests, curves, costs, pictures, and what was published."""

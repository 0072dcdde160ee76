"""One page that compares methods: scores with intervals and tests, curves, costs, pictures, published numbers."""

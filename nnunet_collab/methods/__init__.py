"""The methods: one module or folder per paper, with its settings and loss terms."""

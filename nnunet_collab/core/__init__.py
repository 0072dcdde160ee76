"""What all other parts of the package build on. It imports nothing from the package but itself."""

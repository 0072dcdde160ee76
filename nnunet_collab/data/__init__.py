"""Where data enters: raw datasets, splits by patient, and images that have no labels."""

"""Splits with few labels, folds by patient, and the search for the same image in two roles."""

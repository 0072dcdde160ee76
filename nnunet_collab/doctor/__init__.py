"""The checks of `nnunet_collab doctor`, and how to fix the problems that they find."""

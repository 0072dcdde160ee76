"""What `nnunet_collab doctor` looks at, and how to mend what it finds."""

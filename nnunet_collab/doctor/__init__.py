"""What `nnunet_collab doctor` looks at, and how to fix what it finds."""

"""The commands of `nnunet_collab`, a file each: the top floor, which may use everything and which nothing uses."""

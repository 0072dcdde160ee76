"""The commands of `nnunet_collab`, one file each. They may import all other parts; no other part imports them."""

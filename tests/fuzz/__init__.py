"""Random damage to everything that a stranger may hand over, each case in a child with limits; see README.md."""

"""Scripts that print a table and write JSON; the README's numbers come from them."""

"""Engines run the parts of a bundle. Backends open them; the choice walks the backends."""

"""Runs that last, and what kills them: longer than tests, with figures to be written down."""

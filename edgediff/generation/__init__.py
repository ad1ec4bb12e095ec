"""One request, from prompt to picture."""

"""Long runs: many requests, many cancels, many kills; each prints figures, and says what went wrong."""

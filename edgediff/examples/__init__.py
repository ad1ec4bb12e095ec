"""Programs to copy from: ``batch`` (many prompts), ``service`` (asyncio) and ``desktop`` (Tk)."""

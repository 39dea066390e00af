"""Maestro: a price, an owner and a ceiling on every model call of an agent."""

"""Texts with a name, made on first use."""

"""Named texts, made on first use."""

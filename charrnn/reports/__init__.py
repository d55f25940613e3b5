"""Read-only views of finished work."""

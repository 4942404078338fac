"""The configuration: every key, how it is read, and what one key allows another to be."""

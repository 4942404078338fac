"""What one key allows another to be, a file a section; `check.py` calls them all."""

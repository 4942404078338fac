"""Every message, a file a conversation; `schema.py` is their union."""

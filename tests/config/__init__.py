"""Reading and checking configurations; every shipped one loads."""

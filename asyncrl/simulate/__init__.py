"""`asyncrl simulate` and `asyncrl plan`: the real ledger on a virtual clock."""

"""How fast the whole pipeline runs: overlap, durability, the ledger by itself."""

"""Every prompt's life: leases, batches, the staleness bound, and the SQLite file that keeps them."""

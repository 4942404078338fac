"""The ledger and its store against a naive model; the staleness bound and the controller of η."""

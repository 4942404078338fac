"""The replay process: it grants leases, queues groups and answers the learner, on top of the ledger."""

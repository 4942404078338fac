"""The generator: leases become rollouts, rollouts become scored groups, new weights arrive in flight."""

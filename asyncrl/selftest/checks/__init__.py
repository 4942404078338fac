"""What `asyncrl selftest` checks: a file a check. docs/selftest.md says what each means."""

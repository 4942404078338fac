"""What `asyncrl selftest` checks, of an engine and of a whole system. docs/selftest.md says what each means."""

"""Bringing a version from the learner into every generator: gather, plan, send, receive, verify."""

"""Tests, in the package's folders; `system/` starts whole runs."""

"""What people have already: environments of other packages, each behind the Protocol of `environments/base.py`."""

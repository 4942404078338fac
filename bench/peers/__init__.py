"""asyncrl beside other trainers, on the same machine in the same run."""

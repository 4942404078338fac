"""What benchmarks and system tests share: generator processes, and the processes of a run."""

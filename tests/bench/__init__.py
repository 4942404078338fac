"""The arithmetic and the samplers that the benchmarks rely on."""

"""What the benchmarks of the whole system share; see scripts/bench_*.py."""

"""Measuring: metrics, judges, benchmarks, the runner that cannot lose work, and the report."""

"""Everything that makes training fast and checks it: see docs/performance.md."""

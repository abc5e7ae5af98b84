"""What measures: work and ceilings, the one timing engine, profiles and benchmarks."""

"""The figures of tools/bench: one file each, `measure(bench, files) -> Iterator[Figure]`."""

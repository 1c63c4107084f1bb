"""The data of the examples: the embedded default, and readers of benchmarks and of your own labelled texts."""

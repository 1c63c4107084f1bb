"""The data of the examples: the embedded default, readers of benchmarks, and of labelled texts of your own."""

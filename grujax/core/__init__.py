"""The GRU without a framework: configuration, inputs, layers, pooling, heads."""

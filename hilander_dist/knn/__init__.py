"""The k-NN graph: quantizer, layout into shards, search kernel, distributed build."""

"""What quantization cost: perplexity, divergence from full precision, sensitivity of layers."""

"""CLIPSeg in Flax Linen: network, weights, tokens and conditions. Knows nothing of training."""

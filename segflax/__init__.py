"""segflax: text-prompted segmentation on JAX, a Flax port of CLIPSeg."""

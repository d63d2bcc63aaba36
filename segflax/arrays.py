"""What stands in annotations such as `Float[Array, "b h w 3"]`."""

import jax
import numpy as np

Array = jax.Array | np.ndarray  # Whatever computes with the one takes the other.

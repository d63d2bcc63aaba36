"""rd64-refined at full size (random weights): 352, 512 and a wide picture; bfloat16's masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_clipseg as oracle
from transformers import CLIPSegConfig as HFConfig
from transformers import CLIPSegForImageSegmentation

from segflax.models import weights
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig

pytestmark = [pytest.mark.parity, pytest.mark.slow]
DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module")
def whole():
  config = HFConfig(
    vision_config={"patch_size": 16},
    use_complex_transposed_convolution=True,
    text_config={"pad_token_id": 49407},
  )
  model = oracle.randomize(CLIPSegForImageSegmentation(config), 0)
  ours = CLIPSegConfig.from_hf(config.to_dict())
  assert ours == CLIPSegConfig.rd64_refined()
  tensors = {k: v.numpy() for k, v in model.state_dict().items()}
  return model, weights.to_params(tensors, weights.table(ours), ours, "torch")


@pytest.mark.parametrize("size", [(352, 352), (512, 512), (352, 480)], ids=str)
def test_logits_and_bfloat16_masks(whole, size):
  model, params = whole
  # Soft blobs, not white noise: what a tower sees has structure.
  coarse = DRAW.normal(size=(1, 3, 8, 8)).astype(np.float32)
  smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size, mode="bicubic")
  image = np.ascontiguousarray(smooth.numpy().transpose(0, 2, 3, 1))
  tokens = np.array([[[49406, 1000, 2000, 49407], [49406, 5, 49407, 49407]]], np.int32)
  with torch.no_grad():
    square = size[0] == size[1]
    want = (oracle.logits if square else oracle.logits_of_any_shape)(model, image, tokens).numpy()

  def run(dtype):
    clipseg = CLIPSeg(CLIPSegConfig.rd64_refined(), dtype=dtype)
    return np.asarray(jax.jit(clipseg.apply)({"params": params}, image, tokens))

  error = np.abs(run(jnp.float32) - want).max() / np.abs(want).max()
  middle = np.median(want)  # random weights have no threshold of their own
  rough = run(jnp.bfloat16) > middle
  exact = want > middle
  iou = (rough & exact).sum() / (rough | exact).sum()
  print(f"{size}: largest error {error:.1e} of the largest logit; bfloat16 mask IoU {iou:.4f}")
  assert error <= 1e-4
  assert iou >= 0.9  # half the pixels lie beside the median on purpose: a pessimistic picture

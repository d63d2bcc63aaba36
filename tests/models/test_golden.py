"""Both golden models against what torch said of them (scripts/make_golden.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segflax.models import weights
from segflax.models.layers import interpolate_positions
from segflax.models.pretrained import from_pretrained

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-5  # of the largest value: float32 rounding in another order


# Half the compile time; these programs run once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(scope="module", params=["refined", "simple"])
def golden(request):
  """What torch said, what we say, and our config: everything in one compiled program."""
  folder = GOLDEN / request.param
  model, params, _ = from_pretrained(folder)
  torch = np.load(folder / "torch.npz")
  tokens = torch["tokens"]

  def loss(decoder):
    variables = {"params": params | {"decoder": decoder}}
    logits = model.apply(variables, torch["image"], tokens)
    return jnp.mean(jax.nn.softplus(logits) - logits * torch["target"]), logits

  def everything(params):
    variables = {"params": params}
    (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params["decoder"])
    flat = tokens.reshape(-1, tokens.shape[-1])
    return {
      "taps": model.apply(variables, torch["image"], method="encode_image"),
      "image_embedding": model.apply(variables, torch["image"], method="embed_image"),
      "text": model.apply(variables, flat, method="encode_text").reshape(torch["text"].shape),
      "logits": logits,
      "wide_logits": model.apply(variables, torch["wide"], tokens[:1]),
      "gradients": jax.tree.map(jnp.zeros_like, params) | {"decoder": gradients},
    }

  return torch, jax.jit(everything, compiler_options=QUICK)(params), model.config


def close(got, want, tolerance=TOLERANCE):
  assert got.shape == want.shape
  assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def test_taps(golden):
  torch, ours, config = golden
  assert len(ours["taps"]) == len(config.taps)
  for i, tap in enumerate(ours["taps"]):
    close(tap, torch[f"tap_{i}"])


@pytest.mark.parametrize("name", ["text", "image_embedding", "logits", "wide_logits"])
def test_embeddings_and_logits(golden, name):
  torch, ours, _ = golden
  close(ours[name], torch[name])


def test_decoder_gradients(golden):
  torch, ours, config = golden
  tensors = weights.to_tensors(ours["gradients"], config)
  names = [k.removeprefix("grad/") for k in torch if k.startswith("grad/")]
  assert len(names) == sum(k.startswith("decoder.") for k in tensors)
  for name in names:
    if "k_proj.bias" not in name:  # truly 0: a key's bias moves no softmax
      close(tensors[name], torch[f"grad/{name}"], 1e-4)  # sums over tokens and pixels cancel


def test_positions_are_interpolated_as_torch_does():
  torch = np.load(GOLDEN / "bicubic.npz")
  grid = torch["grid"].transpose(1, 2, 0)
  table = np.concatenate([np.zeros((1, 3), np.float32), grid.reshape(-1, 3)])
  for name in set(torch.files) - {"grid"}:
    h, w = map(int, name.split("x"))
    got = interpolate_positions(table, (h, w))[1:].reshape(h, w, 3)
    # Independent of torch.float32's rounding of the sampling positions: 2e-6 at 22 and 32.
    close(got, torch[name].transpose(1, 2, 0))
  assert interpolate_positions(table, (14, 14)) is table

"""Both golden models against what torch said of them (scripts/make_golden.py)."""

from pathlib import Path

import jax
import numpy as np
import pytest

from segflax.models import weights
from segflax.models.layers import interpolate_positions
from segflax.models.pretrained import from_pretrained

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-5  # of the largest value: float32 rounding in another order


@pytest.fixture(scope="module", params=["refined", "simple"])
def golden(request):
  folder = GOLDEN / request.param
  model, params, _ = from_pretrained(folder)
  return model, params, np.load(folder / "torch.npz")


def close(got, want, tolerance=TOLERANCE):
  assert got.shape == want.shape
  assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def test_towers(golden):
  model, params, torch = golden
  variables = {"params": params}
  taps, embedding = jax.jit(
    lambda x: (
      model.apply(variables, x, method="encode_image"),
      model.apply(variables, x, method="embed_image"),
    )
  )(torch["image"])
  for i, tap in enumerate(taps):
    close(tap, torch[f"tap_{i}"])
  close(embedding, torch["image_embedding"])
  tokens = torch["tokens"]
  text = model.apply(variables, tokens.reshape(-1, tokens.shape[-1]), method="encode_text")
  close(text.reshape(torch["text"].shape), torch["text"])


def test_logits_and_decoder_gradients(golden):
  model, params, torch = golden

  def loss(decoder):
    logits = model.apply({"params": params | {"decoder": decoder}}, torch["image"], torch["tokens"])
    return jax.numpy.mean(jax.nn.softplus(logits) - logits * torch["target"]), logits

  (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params["decoder"])
  close(logits, torch["logits"])
  zeros = jax.tree.map(np.zeros_like, params)
  ours = weights.to_tensors(zeros | {"decoder": gradients}, model.config)
  names = [k.removeprefix("grad/") for k in torch if k.startswith("grad/")]
  assert len(names) == sum(k.startswith("decoder.") for k in ours)
  for name in names:
    if "k_proj.bias" not in name:  # truly 0: a key's bias moves no softmax
      close(ours[name], torch[f"grad/{name}"], 1e-4)  # sums over all tokens and pixels cancel


def test_pictures_that_are_not_square(golden):
  model, params, torch = golden
  logits = model.apply({"params": params}, torch["wide"], torch["tokens"][:1])
  close(logits, torch["wide_logits"])


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

"""Whole models over all variants against transformers on torch, with fresh seeds in every run.

SEGFLAX_PARITY_SEED=N repeats a run: N is the first part of a test's id.
"""

import jax
import numpy as np
import pytest
import torch
import torch_clipseg as oracle
from safetensors.torch import load_file, save_file
from transformers import CLIPSegForImageSegmentation

from segflax.models import weights
from segflax.models.pretrained import from_pretrained, save_pretrained
from segflax.models.processor import Processor

pytestmark = pytest.mark.parity


def bce(logits, target):
  return jax.numpy.mean(jax.nn.softplus(logits) - logits * target)


def store(model, variant, folder):
  """Saves the model in the variant's dtype and rounds the model itself alike."""
  model.to(variant.dtype).save_pretrained(
    folder, max_shard_size="40KB" if variant.shards else "1GB"
  )
  Processor.byte_level(image_size=64).save(folder)
  return model.float()


@pytest.mark.parametrize("number", range(12), ids=lambda i: f"{oracle.BASE_SEED}-{i}")
def test_random_variant(number, tmp_path):
  seed = (oracle.BASE_SEED + number) % 2**32
  variant = oracle.random_variant(seed)
  torch_model = oracle.randomize(CLIPSegForImageSegmentation(variant.config), seed)
  torch_model = store(torch_model, variant, tmp_path / "theirs")
  assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == variant.shards

  with torch.no_grad():
    want = oracle.logits(torch_model, variant.image, variant.tokens).numpy()
  target = (np.random.default_rng(seed).random(want.shape) < 0.3).astype(np.float32)

  model, params, processor = from_pretrained(tmp_path / "theirs")

  def loss(decoder):
    got = model.apply({"params": params | {"decoder": decoder}}, variant.image, variant.tokens)
    return bce(got, target), got

  (_, got), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params["decoder"])
  assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max(), variant
  zeros = jax.tree.map(np.zeros_like, params)
  ours = weights.to_tensors(zeros | {"decoder": gradients}, model.config)
  check_gradients(ours, torch_gradients(torch_model, variant, target), variant)

  out = save_pretrained(tmp_path / "ours", model, params, processor)
  again_model, again, _ = from_pretrained(out)
  assert again_model.config == model.config, variant
  jax.tree.map(np.testing.assert_array_equal, params, again)
  exported = CLIPSegForImageSegmentation.from_pretrained(out).eval()
  again = exported.state_dict()
  for name, tensor in torch_model.state_dict().items():
    assert torch.equal(again[name], tensor.float()), (name, variant)
  with torch.no_grad():
    got = oracle.logits(exported, variant.image, variant.tokens).numpy()
  # Equal weights at other addresses: torch itself then sums in another order (seen: 3e-7).
  np.testing.assert_allclose(
    got, want, rtol=0, atol=1e-5 * np.abs(want).max(), err_msg=str(variant)
  )


def torch_gradients(torch_model, variant, target):
  """Returns torch's decoder gradients, in float64: its float32 errs as much as ours does."""
  torch_model.double()
  logits = oracle.logits(torch_model, variant.image.astype(np.float64), variant.tokens)
  loss = torch.nn.functional.binary_cross_entropy_with_logits(
    logits, torch.from_numpy(target.astype(np.float64))
  )
  loss.backward()
  return {k: p.grad.numpy() for k, p in torch_model.named_parameters() if p.grad is not None}


def check_gradients(ours, theirs, variant):
  """Compares the decoder's gradients tensor by tensor under torch's names."""
  assert set(theirs) == {k for k in ours if k.startswith("decoder.")}
  for name, want in theirs.items():
    if "k_proj.bias" in name:
      continue  # A key's bias moves no softmax: its true gradient is 0, what is there is rounding.
    error = np.abs(ours[name] - want).max() / np.abs(want).max()
    assert error <= 1e-3, (name, error, variant)


def test_clip_folder_gives_towers_under_a_fresh_decoder(tmp_path):
  from transformers import CLIPConfig, CLIPModel

  config = oracle.make_config()
  hf = CLIPConfig(
    text_config=config.text_config.to_dict(),
    vision_config=config.vision_config.to_dict(),
    projection_dim=config.projection_dim,
  )
  clip = oracle.randomize(CLIPModel(hf), 0)
  clip.save_pretrained(tmp_path)
  Processor.byte_level(image_size=64).save(tmp_path)
  draw = np.random.default_rng(0)
  image = draw.normal(size=(2, 64, 64, 3)).astype(np.float32)
  tokens = oracle.random_tokens(draw, (2,), 6)
  with torch.no_grad():
    text = clip.get_text_features(torch.from_numpy(tokens).long()).pooler_output.numpy()
    picture = clip.get_image_features(oracle.nchw(image)).pooler_output.numpy()
  model, params, _ = from_pretrained(tmp_path)
  variables = {"params": params}
  assert model.config.taps == (1, 2, 3)
  got_text = model.apply(variables, tokens, method="encode_text")
  got_picture = model.apply(variables, image, method="embed_image")
  assert np.abs(got_text - text).max() <= 1e-5 * np.abs(text).max()
  assert np.abs(got_picture - picture).max() <= 1e-5 * np.abs(picture).max()
  logits = model.apply(variables, image, tokens[:, None])
  assert logits.shape == (2, 1, 64, 64) and 0.01 < np.std(logits) < 1


def test_stored_dtypes_are_what_they_say(tmp_path):
  """Guards the test above: a bfloat16 variant must really be read from bfloat16."""
  model = CLIPSegForImageSegmentation(oracle.make_config()).to(torch.bfloat16)
  model.save_pretrained(tmp_path)
  tensors = load_file(tmp_path / "model.safetensors")
  assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
  save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
  read = weights.read_tensors(tmp_path)
  name = "decoder.film_mul.weight"
  np.testing.assert_array_equal(read[name].astype(np.float32), tensors[name].float().numpy())

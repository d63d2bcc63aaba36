"""The peer of scripts/benchmark.py: transformers' torch CLIPSeg as a user would write it."""

import json
import os
import sys

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from timing import serve
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

task = json.loads(sys.argv[1])
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX's default there.
model = CLIPSegForImageSegmentation(CLIPSegConfig.from_dict(task["hf_config"])).to(device)
b, q, size = task["batch"], task["prompts"], task["size"]
autocast = torch.autocast(device, torch.bfloat16, enabled=task["bfloat16"])

# One row per (picture, prompt): transformers repeats the picture for each of its prompts.
pixels = torch.randn(b, 3, size, size).repeat_interleave(q, 0).to(device)
masks = (torch.rand(b * q, size, size) < 0.1).float().to(device)
text = model.config.text_config
ids = torch.randint(3, min(text.vocab_size, 500) - 3, (b * q, task["text_length"]))
ids[:, 0], ids[:, -1] = text.bos_token_id, text.eos_token_id
ids = ids.to(device)


def forward():
  return model(pixel_values=pixels, input_ids=ids, interpolate_pos_encoding=True).logits


def forward_with_vision_gradient():
  # transformers' own forward runs the vision tower under no_grad: no fine-tuning with it.
  condition = model.get_conditional_embeddings(batch_size=b * q, input_ids=ids)
  vision = model.clip.vision_model(
    pixels, output_hidden_states=True, interpolate_pos_encoding=True
  ).hidden_states
  taps = [vision[i + 1] for i in model.extract_layers]
  return model.decoder(taps, condition).logits


def loss_of(logits):
  logits = logits.float().reshape(masks.shape)
  p = logits.sigmoid()
  overlap, total = (p * masks).sum((1, 2)), (p + masks).sum((1, 2))
  dice = 1 - (2 * overlap + 1) / (total + 1)
  return binary_cross_entropy_with_logits(logits, masks) + dice.mean()


def wait():
  if device == "cuda":
    torch.cuda.synchronize()


full = task["trainable"] != "decoder"
run = forward_with_vision_gradient if full else forward
if task["compiled"]:
  run = torch.compile(run)

if task["kind"] == "predict":
  model.eval()

  def call():
    with torch.inference_mode(), autocast:
      run().float().sigmoid().cpu()
    wait()

else:
  for name, parameter in model.named_parameters():
    vision = name.startswith("clip.vision_model") and "post_layernorm" not in name
    parameter.requires_grad = name.startswith("decoder") or (full and vision)
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=1e-4)
  model.train()

  def call():
    with autocast:
      loss = loss_of(run())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    wait()


def device_peak():
  return torch.cuda.max_memory_allocated() if device == "cuda" else None


kind = torch.cuda.get_device_name() if device == "cuda" else "cpu"
serve(call, device_peak=device_peak, device=kind, version=f"torch {torch.__version__}")

"""Writes a trained model as one file that jax alone runs, on cpu, cuda and tpu, without segflax.

    scripts/export.py --model=runs/quickstart/best_model --output=model.jax --prompt "segment crack"

The file holds the weights. `pixels` are uint8 `[b h w 3]` of the exported size, `tokens` int32
`[q 77]` (this script prints those of each --prompt), `logits` float32 `[b q h w]`; b and q are
free. Where it runs, jax and flatbuffers are installed, and nothing of segflax:

    exported = jax.export.deserialize(bytearray(open("model.jax", "rb").read()))
    logits = exported.call(pixels, tokens)
    masks = logits > 0  # probability = sigmoid(logit) > 0.5
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int, UInt8

from segflax.errors import UserError
from segflax.models.clip_vision import check_image_size
from segflax.models.clipseg import CLIPSeg, normalize
from segflax.models.pretrained import from_pretrained

PLATFORMS = ("cpu", "cuda", "tpu")


def export_model(model: CLIPSeg, params: dict, size: tuple[int, int]) -> export.Exported:
  """Returns pixels and tokens -> logits, with free numbers of pictures and prompts.

  Args:
    model: any; computes in float32 here, and with plain attention, which every platform has.
    params: closed over, so that they end up in the file.
    size: height and width of the pictures, multiples of the patch.
  """
  model = model.clone(dtype=jnp.float32, attention="plain")
  params = jax.tree.map(jnp.asarray, params)

  def run(pixels: UInt8[Array, "b h w 3"], tokens: Int[Array, "q l"]) -> Float[Array, "b q h w"]:
    variables = {"params": params}
    taps = model.apply(variables, normalize(pixels), method="encode_image")
    condition = model.apply(variables, tokens, method="encode_text")
    condition = jnp.broadcast_to(condition, (pixels.shape[0], *condition.shape))
    return model.apply(variables, taps, condition, size, method="decode")

  b, q = export.symbolic_shape("b, q")
  pixels = jax.ShapeDtypeStruct((b, *size, 3), jnp.uint8)
  tokens = jax.ShapeDtypeStruct((q, model.config.max_text_length), jnp.int32)
  return export.export(jax.jit(run), platforms=PLATFORMS)(pixels, tokens)


def main(argv: list[str] | None = None):
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--model", required=True, help="model folder, or hub id")
  parser.add_argument("--output", required=True, type=Path, help="the file to write")
  parser.add_argument("--image_size", type=int, nargs="+", help="side, or height and width")
  parser.add_argument("--prompt", action="append", default=[], help="print the tokens of these")
  args = parser.parse_args(argv)
  model, params, processor = from_pretrained(args.model)
  size = args.image_size or [processor.image_size]
  if len(size) > 2:
    raise UserError(
      f"--image_size {size} has {len(size)} numbers; give a side, or height and width"
    )
  size = (size[0], size[-1])
  check_image_size(*size, model.config.patch_size)
  exported = export_model(model, params, size)
  args.output.parent.mkdir(parents=True, exist_ok=True)
  args.output.write_bytes(exported.serialize())
  megabytes = args.output.stat().st_size / 1e6
  print(f"{args.output}: {megabytes:.1f} MB, {', '.join(exported.platforms)}")
  for name, spec in zip(("pixels", "tokens"), exported.in_avals, strict=True):
    print(f"{name}: {spec.dtype} {list(spec.shape)}")
  for prompt in args.prompt:
    row = processor.tokenize([prompt])[0].tolist()
    padding = [processor.tokenizer.pad_token_id] * (model.config.max_text_length - len(row))
    print(f"tokens of {prompt!r}: {row + padding}")


if __name__ == "__main__":
  try:
    main()
  except UserError as error:
    print(f"export: {error}", file=sys.stderr)
    sys.exit(2)

"""CLIPSegConfig: the shape of a model, and its translation to and from Hugging Face's config."""

import dataclasses
import json
import math

from segflax.errors import UserError
from segflax.models.layers import activation


def head_factors(patch_size: int) -> tuple[int, int]:
  """Returns two factors of the patch size, as equal as can be, the smaller first (16: 4, 4)."""
  first = max(f for f in range(1, math.isqrt(patch_size) + 1) if patch_size % f == 0)
  return first, patch_size // first


@dataclasses.dataclass(frozen=True)
class CLIPSegConfig:
  """Sizes and conventions of a CLIPSeg; the defaults are those of rd64-refined on the hub."""

  # Vision tower
  image_size: int = 224  # px; the position table has (image_size / patch_size)^2 rows, any other
  patch_size: int = 16  # px    picture size interpolates it
  vision_width: int = 768
  vision_layers: int = 12
  vision_heads: int = 12
  vision_mlp: int = 3072
  vision_act: str = "quick_gelu"
  vision_epsilon: float = 1e-5  # of its layer normalisations, and the decoder's
  # Text tower
  vocab_size: int = 49408
  max_text_length: int = 77  # tokens, start and end included
  text_width: int = 512
  text_layers: int = 12
  text_heads: int = 8
  text_mlp: int = 2048
  text_act: str = "quick_gelu"
  text_epsilon: float = 1e-5
  bos_token_id: int = 49406
  eos_token_id: int = (
    49407  # 2: the largest id of a text ends it (configs before transformers 4.31)
  )
  pad_token_id: int = 49407
  # Decoder
  projection_dim: int = 512  # of text and image embeddings: the condition
  taps: tuple[int, ...] = (3, 6, 9)  # 0-based vision blocks whose outputs the decoder reads
  reduce_dim: int = 64
  conditional_layer: int = 0  # decoder step that is conditioned; step 0 reads the deepest tap
  decoder_heads: int = 4
  decoder_mlp: int = 2048
  # Factors by which the head enlarges the token grid: (patch_size,) is the simple head, two
  # factors are the refined one.
  head: tuple[int, ...] = (4, 4)
  decoder_dropout: float = 0.0  # 0.1 in the original project; transformers has none

  def __post_init__(self):
    for name in ("taps", "head"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for name in ("vision_act", "text_act"):
      activation(getattr(self, name))
    for width, heads in (
      ("vision_width", "vision_heads"),
      ("text_width", "text_heads"),
      ("reduce_dim", "decoder_heads"),
    ):
      if getattr(self, width) % getattr(self, heads):
        raise UserError(
          f"{width} {getattr(self, width)} is not a multiple of {heads} {getattr(self, heads)}"
        )
    if self.image_size % self.patch_size:
      raise UserError(
        f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
        f"use {-(-self.image_size // self.patch_size) * self.patch_size}"
      )
    if not self.taps or not all(0 <= tap < self.vision_layers for tap in self.taps):
      raise UserError(f"taps {self.taps} must name vision blocks 0 to {self.vision_layers - 1}")
    if not 0 <= self.conditional_layer < len(self.taps):
      raise UserError(
        f"conditional_layer {self.conditional_layer} must be one of the {len(self.taps)} decoder "
        f"steps, 0 to {len(self.taps) - 1}"
      )
    if len(self.head) not in (1, 2):
      raise UserError(f"head {self.head} must have one factor (simple) or two (refined)")
    if not 0 <= self.decoder_dropout < 1:
      raise UserError(f"decoder_dropout {self.decoder_dropout} must lie in [0, 1)")

  @property
  def refined(self) -> bool:
    """Whether the head is a convolution and two transposed ones, not a single transposed one."""
    return len(self.head) == 2

  @classmethod
  def rd64_refined(cls) -> "CLIPSegConfig":
    """CIDAS/clipseg-rd64-refined, 150.8 M parameters."""
    return cls()

  @classmethod
  def rd64(cls) -> "CLIPSegConfig":
    """CIDAS/clipseg-rd64: the simple head."""
    return cls(head=(16,))

  @classmethod
  def rd16(cls) -> "CLIPSegConfig":
    """CIDAS/clipseg-rd16: the simple head, 16 decoder channels."""
    return cls(head=(16,), reduce_dim=16)

  @classmethod
  def small(
    cls,
    *,
    image_size: int = 80,
    patch_size: int = 8,
    width: int = 96,
    layers: int = 4,
    taps: tuple[int, ...] = (0, 2, 3),
    text_width: int = 64,
    reduce_dim: int = 64,
    decoder_mlp: int = 256,
    refined: bool = False,
    **fields,
  ) -> "CLIPSegConfig":
    """A model that trains from scratch on a CPU, for the byte-level tokenizer of 514 tokens.

    Heads are 32 wide in the towers; any field of the config may be given besides.
    """
    sizes = {
      "vision_heads": max(1, width // 32),
      "vision_mlp": 4 * width,
      "vocab_size": 514,
      "text_layers": 2,
      "text_heads": max(1, text_width // 32),
      "text_mlp": 4 * text_width,
      "bos_token_id": 512,
      "eos_token_id": 513,
      "pad_token_id": 513,
      "projection_dim": text_width,
      "head": head_factors(patch_size) if refined else (patch_size,),
    }
    return cls(
      image_size=image_size,
      patch_size=patch_size,
      vision_width=width,
      vision_layers=layers,
      taps=taps,
      text_width=text_width,
      reduce_dim=reduce_dim,
      decoder_mlp=decoder_mlp,
      **(sizes | fields),
    )

  @classmethod
  def from_hf(cls, config: dict) -> "CLIPSegConfig":
    """Reads the content of a Hugging Face `config.json` of model type clipseg or clip.

    A CLIP config gives the towers; the decoder is then rd64-refined's, with taps at a quarter,
    half and three quarters of the depth.

    Raises:
      UserError: another model type, a non-square table, an unknown activation.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPConfig
    from transformers import CLIPSegConfig as HFConfig  # slow to import; needed by files only

    if "model_type" not in config or config["model_type"] not in ("clipseg", "clip"):
      raise UserError("config.json has no model_type 'clipseg' or 'clip'; give a folder of either")
    kind = config["model_type"]
    try:
      hf = (HFConfig if kind == "clipseg" else CLIPConfig).from_dict(config)
    except (TypeError, ValueError, StrictDataclassError) as error:
      raise UserError(f"config.json describes no {kind} model ({error}); fetch it again") from error
    vision, text = hf.vision_config, hf.text_config
    if not isinstance(text.eos_token_id, int):
      raise UserError(f"text_config.eos_token_id {text.eos_token_id} must be one integer")
    for name in ("image_size", "patch_size"):
      if not isinstance(getattr(vision, name), int):
        raise UserError(f"vision_config.{name} {getattr(vision, name)} must be one integer")
    fields = {
      "image_size": vision.image_size,
      "patch_size": vision.patch_size,
      "vision_width": vision.hidden_size,
      "vision_layers": vision.num_hidden_layers,
      "vision_heads": vision.num_attention_heads,
      "vision_mlp": vision.intermediate_size,
      "vision_act": vision.hidden_act,
      "vision_epsilon": vision.layer_norm_eps,
      "vocab_size": text.vocab_size,
      "max_text_length": text.max_position_embeddings,
      "text_width": text.hidden_size,
      "text_layers": text.num_hidden_layers,
      "text_heads": text.num_attention_heads,
      "text_mlp": text.intermediate_size,
      "text_act": text.hidden_act,
      "text_epsilon": text.layer_norm_eps,
      "bos_token_id": text.bos_token_id,
      "eos_token_id": text.eos_token_id,
      "pad_token_id": text.pad_token_id,
      "projection_dim": hf.projection_dim,
    }
    if kind == "clip":
      layers, patch = vision.num_hidden_layers, vision.patch_size
      return cls(
        taps=tuple(sorted({layers // 4, layers // 2, 3 * layers // 4})),
        head=head_factors(patch),
        **fields,
      )
    quarter = vision.patch_size // 4
    # transformers' refined head enlarges by (patch // 4)^2, whatever the patch is.
    refined = hf.use_complex_transposed_convolution
    fields["head"] = (quarter, quarter) if refined else (vision.patch_size,)
    if "segflax" in config:  # what transformers cannot express; it ignores the entry
      own = config["segflax"]
      fields |= {name: tuple(v) if isinstance(v, list) else v for name, v in own.items()}
    return cls(
      taps=tuple(hf.extract_layers),
      reduce_dim=hf.reduce_dim,
      conditional_layer=hf.conditional_layer,
      decoder_heads=hf.decoder_num_attention_heads,
      decoder_mlp=hf.decoder_intermediate_size,
      **fields,
    )

  def to_hf(self) -> dict:
    """Returns the content of a `config.json` that transformers' CLIPSegConfig reads."""
    from transformers import CLIPSegConfig as HFConfig

    quarter = self.patch_size // 4
    expressible = (quarter, quarter) if self.refined else (self.patch_size,)
    own = {}
    if self.head != expressible:
      own["head"] = list(self.head)
    if self.decoder_dropout:
      own["decoder_dropout"] = self.decoder_dropout
    config = HFConfig(
      vision_config={
        "image_size": self.image_size,
        "patch_size": self.patch_size,
        "hidden_size": self.vision_width,
        "num_hidden_layers": self.vision_layers,
        "num_attention_heads": self.vision_heads,
        "intermediate_size": self.vision_mlp,
        "hidden_act": self.vision_act,
        "layer_norm_eps": self.vision_epsilon,
      },
      text_config={
        "vocab_size": self.vocab_size,
        "max_position_embeddings": self.max_text_length,
        "hidden_size": self.text_width,
        "num_hidden_layers": self.text_layers,
        "num_attention_heads": self.text_heads,
        "intermediate_size": self.text_mlp,
        "hidden_act": self.text_act,
        "layer_norm_eps": self.text_epsilon,
        "bos_token_id": self.bos_token_id,
        "eos_token_id": self.eos_token_id,
        "pad_token_id": self.pad_token_id,
      },
      projection_dim=self.projection_dim,
      extract_layers=list(self.taps),
      reduce_dim=self.reduce_dim,
      conditional_layer=self.conditional_layer,
      decoder_num_attention_heads=self.decoder_heads,
      decoder_intermediate_size=self.decoder_mlp,
      decoder_hidden_act="relu",  # what transformers' decoder uses whatever stands here
      use_complex_transposed_convolution=self.refined,
      architectures=["CLIPSegForImageSegmentation"],
      dtype="float32",
    )
    # As transformers itself writes it, without the fields that every model of its has.
    return json.loads(config.to_json_string()) | ({"segflax": own} if own else {})

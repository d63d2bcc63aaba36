"""Pictures that exist only by name; a test helper."""

from PIL import Image

from segflax.data.items import Item


def tiny_item(number, group=None, source="a", concept="crack", split="", image=b""):
  return Item(
    image_id=f"{source}{number}",
    image=lambda: image,
    split=split,
    group=group or f"{source}{number}",
    source=source,
    concepts=(concept,),
    masks=lambda: {concept: Image.new("L", (4, 4))},
  )

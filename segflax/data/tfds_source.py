"""Any TFDS data set in ArrayRecord with a picture and a mask; one that we wrote, too."""

import json
from collections import Counter
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from segflax.data import builder
from segflax.data.decode import load_mask
from segflax.data.items import Item, Source, official_split, source_group, source_name
from segflax.errors import UserError

_MASKS = ("mask", "segmentation_mask", "segmentation", "label", "annotation")
_NAMES = ("image_id", "file_name", "filename", "image/filename", "id")


def recognises(folder: Path) -> bool:
  return _place(folder) is not None


def read(folder: Path, concept: str) -> Source:
  """Reads a prepared data set.

  Args:
    folder: Holds `dataset_info.json` and `features.json`, or is a data_dir of ours.
    concept: What the masks show; with a data set of ours, the one concept to take.

  Raises:
    UserError: The data set has no picture, no mask, or another file format.
  """
  path = _place(folder)
  tfds_builder = tfds.builder_from_directory(str(path))
  if tfds_builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
    raise UserError(
      f"{path} is stored as {tfds_builder.info.file_format.value}; "
      "prepare it with file_format='array_record', which needs no TensorFlow"
    )
  name = source_name(folder)
  ours = json.loads((path / "metadata.json").read_text()) if _is_ours(path) else None
  if ours:
    items = _our_items(path, concept, name)
    return Source(name, folder, "tfds", tuple(items), licenses=tuple(ours["licenses"]))
  image, mask = _features(path, tfds_builder.info.features)
  if not concept:
    raise UserError(f"{path}: the masks have no name; name it: --source CONCEPT={folder}")
  items = _foreign_items(tfds_builder, image, mask, concept, name)
  license_text = tfds_builder.info.redistribution_info.license
  return Source(
    name, folder, "tfds", tuple(items), licenses=(license_text,) if license_text else ()
  )


def _our_items(path: Path, concept: str, source: str) -> list[Item]:
  items = []
  for split in builder.load_info(path).splits:
    records = builder.open_split(path, split)
    for number in range(len(records)):
      record = records[number]
      wanted = [c for c in record["concepts"] if concept in ("", c)]
      if wanted:
        items.append(_our_item(records, number, record, tuple(wanted), split, source))
  return items


def _our_item(records, number: int, record: dict, concepts: tuple, split: str, source: str) -> Item:
  def masks() -> dict[str, Image.Image]:
    stored = records[number]
    found = dict(zip(stored["concepts"], stored["masks"], strict=True))
    return {concept: load_mask(found[concept]) for concept in concepts}

  return Item(
    image_id=record["image_id"],
    image=lambda: records[number]["image"],
    split=official_split(split),
    group=record["group"],
    source=source,
    concepts=concepts,
    masks=masks,
    annotations=Counter(concepts),
  )


def _foreign_items(tfds_builder, image: str, mask: str, concept: str, source: str) -> list[Item]:
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  items = []
  for split in tfds_builder.info.splits:
    records = tfds_builder.as_data_source(split=split, deserialize_method=raw)
    for number in range(len(records)):
      file_name = _file_name(records[number]) or f"{tfds_builder.name}_{split}_{number:06d}"
      items.append(
        Item(
          image_id=Path(file_name).stem,
          image=lambda records=records, n=number: _bytes(records[n], image),
          split=official_split(split),
          group=source_group(source, Path(split) / file_name),
          source=source,
          concepts=(concept,),
          masks=lambda records=records, n=number: {concept: load_mask(_bytes(records[n], mask))},
          annotations=Counter([concept]),
        )
      )
  return items


def _file_name(record: bytes) -> str:
  """Returns what a record calls its picture: a text, or a number in decimal; "" for nothing."""
  feature = _parse(record)
  for name in (name for name in _NAMES if name in feature):
    for text in feature[name].bytes_list.value:
      return text.decode(errors="replace")
    for number in feature[name].int64_list.value:
      return str(number)
  return ""


def _parse(record: bytes):
  return tf_example_pb2.Example.FromString(record).features.feature


def _bytes(record: bytes, key: str) -> bytes:
  return _parse(record)[key].bytes_list.value[0]


def _features(path: Path, features) -> tuple[str, str]:
  """Returns the names of the picture's and the mask's feature."""
  pictures = {n: f for n, f in features.items() if isinstance(f, tfds.features.Image)}
  colour = [name for name, feature in pictures.items() if feature.shape[-1] == 3]
  masks = [name for name in _MASKS if name in pictures and name not in colour]
  masks += [name for name in pictures if name not in (*colour, *masks)]
  if not colour or not masks:
    raise UserError(
      f"{path} has the features {', '.join(features)}; needed are an Image of 3 channels and "
      "an Image of 1 channel for the mask"
    )
  return ("image" if "image" in colour else colour[0]), masks[0]


def _place(folder: Path) -> Path | None:
  for path in (folder / builder.NAME / builder.VERSION, folder):
    if (path / "dataset_info.json").is_file() and (path / "features.json").is_file():
      return path
  return None


def _is_ours(path: Path) -> bool:
  return path.parent.name == builder.NAME and (path / "metadata.json").is_file()

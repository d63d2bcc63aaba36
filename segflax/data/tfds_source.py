"""Any TFDS data set in ArrayRecord with a picture and a mask; one that we wrote, too."""

import json
from pathlib import Path

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from segflax.data import builder
from segflax.data.decode import load_mask
from segflax.data.items import Item, Source, official_split
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
  name = f"{folder.parent.name}/{folder.name}"
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
    annotations=len(concepts),
  )


def _foreign_items(tfds_builder, image: str, mask: str, concept: str, source: str) -> list[Item]:
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  items = []
  for split in tfds_builder.info.splits:
    records = tfds_builder.as_data_source(split=split, deserialize_method=raw)
    for number in range(len(records)):
      feature = _parse(records[number])
      named = [feature[n].bytes_list.value[0].decode() for n in _NAMES if n in feature]
      stem = Path(named[0]).stem if named else f"{tfds_builder.name}_{split}_{number:06d}"
      items.append(
        Item(
          image_id=stem,
          image=lambda records=records, n=number: _bytes(records[n], image),
          split=official_split(split),
          group=stem,
          source=source,
          concepts=(concept,),
          masks=lambda records=records, n=number: {concept: load_mask(_bytes(records[n], mask))},
          annotations=1,
        )
      )
  return items


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

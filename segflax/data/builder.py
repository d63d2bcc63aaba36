"""The data set on disk: TFDS over ArrayRecord, written and read without TensorFlow.

What `write_dataset` leaves is an ordinary TFDS data set: `tfds.builder_from_directory(path)` and
`tfds.data_source("concept_masks", data_dir=...)` read it, and so do Kauldron and any Grain program.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from segflax.data import records
from segflax.data.records import Example
from segflax.errors import UserError

NAME, VERSION = "concept_masks", "1.0.0"
_TEXTS = ("image_id", "group", "source")
_INTS = ("height", "width")


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
  """What a prepared data set says of itself.

  Attributes:
    path: The folder that TFDS reads (`<data_dir>/concept_masks/1.0.0`).
    concepts: Their order is their number.
    counts: Split to `pictures`, `groups`, `max_height`, `max_width` (pixels) and `concepts`: per
      concept the pictures where it is `known`, those among them with an `empty` mask, and the
      mean `area` of all known masks (share of the picture).
    sources: Source to its path, layout, licence and counts, as `prepare_data` found them.
    licenses: Their names.
    content_sha256: Of all records in order; equal content, equal hash.
  """

  path: Path
  concepts: tuple[str, ...]
  counts: dict[str, dict]
  sources: dict[str, dict]
  licenses: tuple[str, ...]
  content_sha256: str

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.counts)


class ConceptMasks(tfds.core.GeneratorBasedBuilder):
  """Pictures with one mask per concept that somebody looked for."""

  VERSION = tfds.core.Version(VERSION)

  def __init__(self, *, splits=None, concepts=(), metadata=None, max_size=0, **kwargs):
    self._splits, self._max_size = splits or {}, max_size
    self._concepts, self._metadata = list(concepts), dict(metadata or {})
    self._digest = hashlib.sha256()
    super().__init__(**kwargs)

  def _info(self):
    features = tfds.features
    image = features.Image(shape=(None, None, 3))
    mask = features.Image(shape=(None, None, 1), encoding_format="png")
    return tfds.core.DatasetInfo(
      builder=self,
      description="Pictures with one mask per concept that somebody looked for (segflax).",
      features=features.FeaturesDict(
        {"image": image, "masks": features.Sequence(mask)}
        | {"concepts": features.Sequence(features.Text())}
        | {name: features.Text() for name in _TEXTS}
        | {name: np.int32 for name in _INTS}
      ),
      disable_shuffling=True,  # the stream shuffles; here the order is the caller's
      license="\n".join(self._metadata["licenses"]) if "licenses" in self._metadata else None,
      metadata=tfds.core.MetadataDict({}),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    self.info.metadata.update(self._metadata, concepts=self._concepts, counts={})
    return {split: self._generate_examples(split) for split in self._splits}

  def _generate_examples(self, split):
    counts = _SplitCounts()
    for number, example in enumerate(self._splits[split]):
      record = records.encode(example, self._max_size)
      counts.add(record, example["masks"])
      _update_digest(self._digest, split, record)
      yield number, record
    self.info.metadata["counts"][split] = counts.summary()
    self.info.metadata["content_sha256"] = self._digest.hexdigest()


class Records:
  """Random access to the records of one split, encoded as they are stored.

  `records[i]` is a dict: `image` (JPEG or PNG bytes), `masks` (list of PNG bytes), `concepts`
  (list of str, parallel to masks), `image_id`, `group`, `source` (str), `height`, `width` (int).
  """

  def __init__(self, source: Sequence[bytes]):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict:
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)}")  # ends iteration, too
    feature = tf_example_pb2.Example.FromString(self._source[index]).features.feature
    return {
      "image": feature["image"].bytes_list.value[0],
      "masks": list(feature["masks"].bytes_list.value),
      "concepts": [text.decode() for text in feature["concepts"].bytes_list.value],
      **{name: feature[name].bytes_list.value[0].decode() for name in _TEXTS},
      **{name: feature[name].int64_list.value[0] for name in _INTS},
    }


def write_dataset(
  data_dir: str | Path,
  splits: Mapping[str, Iterable[Example]],
  concepts: Sequence[str],
  metadata: Mapping | None = None,
  *,
  max_size: int = 0,
  overwrite: bool = False,
) -> DatasetInfo:
  """Writes a data set below `data_dir`; either all of it is there afterwards, or none.

  Args:
    data_dir: Where to; TFDS adds `concept_masks/1.0.0`.
    splits: Split name to its examples, in the order to store; each is read once.
    concepts: All concepts in the order of their numbers.
    metadata: `sources` and `licenses` as in `DatasetInfo`.
    max_size: Longest side in pixels that is stored; 0 stores pictures as large as they are.
    overwrite: Replace a data set that is there already.

  Returns:
    What `load_info(data_dir)` returns.

  Raises:
    UserError: A data set is there already, a split is empty, or a picture or mask is unusable.
  """
  path = check_target(data_dir, overwrite)
  tfds.disable_progress_bar()  # it draws over everything that is not a terminal
  # TFDS would take a data set that is there for the one to write: build beside it, then move.
  with tempfile.TemporaryDirectory(dir=_made(data_dir), prefix=".incomplete-") as scratch:
    builder = ConceptMasks(
      splits={split: _never_empty(split, examples) for split, examples in splits.items()},
      concepts=concepts,
      metadata={"sources": {}, "licenses": [], **(metadata or {})},
      max_size=max_size,
      data_dir=scratch,
      file_format="array_record",
    )
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of a download; there is none
      builder.download_and_prepare(file_format="array_record")
    if path.exists():
      shutil.rmtree(path)
    path.parent.mkdir(exist_ok=True)
    (Path(scratch) / NAME / VERSION).rename(path)
  return load_info(data_dir)


def check_target(data_dir: str | Path, overwrite: bool) -> Path:
  """Returns the folder that TFDS will read; raises UserError where it would be overwritten."""
  path = Path(data_dir) / NAME / VERSION
  if path.exists() and not overwrite:
    raise UserError(f"{path} exists; choose another data_dir or pass overwrite")
  return path


def load_info(data_dir: str | Path) -> DatasetInfo:
  """Reads what a prepared data set says of itself.

  Args:
    data_dir: The folder given to `write_dataset`, or the one inside it that TFDS reads.

  Raises:
    UserError: There is no such data set, or it is not one of ours.
  """
  path = _locate(data_dir)
  metadata = json.loads((path / "metadata.json").read_text())
  names = {field.name for field in dataclasses.fields(DatasetInfo)} - {"path"}
  if missing := sorted(names - set(metadata)):
    raise UserError(
      f"{path}/metadata.json lacks {missing}; prepare it with scripts/prepare_data.py"
    )
  found = {name: metadata[name] for name in names}
  found |= {name: tuple(found[name]) for name in ("concepts", "licenses")}
  return DatasetInfo(path=path, **found)


def open_split(data_dir: str | Path, split: str) -> Records:
  """Opens one split for reading by record number, without decoding pictures.

  Raises:
    UserError: There is no such data set or split.
  """
  info = load_info(data_dir)
  if split not in info.counts:
    raise UserError(f"{info.path} has no split {split!r}; it has {', '.join(info.splits)}")
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  builder = tfds.builder_from_directory(str(info.path))
  return Records(builder.as_data_source(split=split, deserialize_method=raw))


class _SplitCounts:
  """Gathers the counts of one split while it is written."""

  def __init__(self):
    self._groups, self._sizes, self._areas = set(), [], {}

  def add(self, record: dict, masks: dict):
    self._groups.add(record["group"])
    self._sizes.append((record["height"], record["width"]))
    for concept, mask in masks.items():
      self._areas.setdefault(concept, []).append(float((np.asarray(mask) > 0).mean()))

  def summary(self) -> dict:
    heights, widths = zip(*self._sizes, strict=True)
    return {
      "pictures": len(self._sizes),
      "groups": len(self._groups),
      "max_height": max(heights),
      "max_width": max(widths),
      "concepts": {
        concept: {"known": len(areas), "empty": areas.count(0.0), "area": float(np.mean(areas))}
        for concept, areas in sorted(self._areas.items())
      },
    }


def _made(data_dir: str | Path) -> Path:
  Path(data_dir).mkdir(parents=True, exist_ok=True)
  return Path(data_dir)


def _never_empty(split: str, examples: Iterable[Example]) -> Iterable[Example]:
  empty = True
  for example in examples:
    empty = False
    yield example
  if empty:
    raise UserError(f"split {split!r} is empty; every split needs at least one picture")


def _update_digest(digest, split: str, record: dict):
  for part in (split, record["image_id"], record["group"], record["source"], *record["concepts"]):
    digest.update(part.encode() + b"\0")
  for part in (record["image"], *record["masks"]):
    digest.update(hashlib.sha256(part).digest())


def _locate(data_dir: str | Path) -> Path:
  if not str(data_dir):
    raise UserError("data_dir is empty; name the folder that scripts/prepare_data.py wrote")
  for path in (Path(data_dir) / NAME / VERSION, Path(data_dir)):
    if (path / "dataset_info.json").is_file() and (path / "metadata.json").is_file():
      return path
  problem = "holds no prepared data set" if Path(data_dir).exists() else "does not exist"
  raise UserError(f"data_dir {data_dir} {problem}; scripts/prepare_data.py writes one")

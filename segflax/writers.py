"""TensorBoard and the log through CLU's metric writers, without TensorFlow.

The only file that knows CLU. `clu.metric_writers` imports TensorFlow for a single class, its
summary writer: 12 s and 1.3 GB for writing small protocol buffers. `SummaryWriter` below writes the
same events with tensorboard's own code; it is registered under the name of CLU's module before
`clu.metric_writers` is first imported, and everything else of CLU works unmodified.
"""

import io
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from clu.internal import utils as clu_utils
from PIL import Image
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import summary_v2 as histogram_summary
from tensorboard.plugins.hparams import summary_v2 as hparams_summary
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import summary_v2 as scalar_summary
from tensorboard.plugins.text import summary_v2 as text_summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util


class SummaryWriter:
  """clu.metric_writers.SummaryWriter over tensorboard's event files.

  Args:
    logdir: takes one more event file.
    from_step: updates made when this session begins: TensorBoard drops what earlier files of the
      folder say of later ones. 0: of all.
    metrics: tags of the scalars that TensorBoard's HParams tab shows as results.
  """

  def __init__(self, logdir: str, *, from_step: int = 0, metrics: Sequence[str] = ()):
    self._events, self._metrics = EventFileWriter(str(logdir)), metrics
    # The first START of a run drops nothing, each later one what stands at its step and above.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(from_step + 1 if from_step else 0, session_log=start)

  def write_scalars(self, step: int, scalars: Mapping[str, float]):
    for tag, value in scalars.items():
      self._add(step, summary=scalar_summary.scalar_pb(tag, float(value)))

  def write_images(self, step: int, images: Mapping[str, np.ndarray]):
    """Takes `[h w c]` or `[n h w c]`, c 1 or 3, uint8 or float in [0, 1]."""
    for tag, batch in images.items():
      batch = np.asarray(batch)
      batch = batch[None] if batch.ndim == 3 else batch
      size = [str(batch.shape[2]).encode(), str(batch.shape[1]).encode()]
      value = summary_pb2.Summary.Value(
        tag=tag,
        metadata=image_metadata.create_summary_metadata(display_name=None, description=None),
        tensor=tensor_util.make_tensor_proto(size + [_png(image) for image in batch]),
      )
      self._add(step, summary=summary_pb2.Summary(value=[value]))

  def write_texts(self, step: int, texts: Mapping[str, str]):
    for tag, text in texts.items():
      self._add(step, summary=text_summary.text_pb(tag, text))

  def write_histograms(
    self,
    step: int,
    arrays: Mapping[str, np.ndarray],
    num_buckets: Mapping[str, int] | None = None,
  ):
    for tag, array in arrays.items():
      buckets = num_buckets[tag] if num_buckets and tag in num_buckets else None
      self._add(step, summary=histogram_summary.histogram_pb(tag, np.asarray(array), buckets))

  def write_hparams(self, hparams: Mapping):
    """Takes a nested config; shown with the last values of `metrics` in the HParams tab."""
    flat = {
      key: value if isinstance(value, bool | int | float | str) else str(value)
      for key, value in clu_utils.flatten_dict(hparams)
    }
    names = [hparams_summary.HParam(key) for key in sorted(flat)]
    metrics = [hparams_summary.Metric(tag) for tag in self._metrics]
    self._add(0, summary=hparams_summary.hparams_config_pb(names, metrics))
    self._add(0, summary=hparams_summary.hparams_pb(flat))

  def write_summaries(self, step: int, values: Mapping, metadata: Mapping | None = None):
    raise NotImplementedError("raw summaries are TensorFlow's; use the other write methods")

  def write_videos(self, step: int, videos: Mapping):
    raise NotImplementedError("TensorBoard shows no videos; use write_images")

  def write_audios(self, step: int, audios: Mapping, *, sample_rate: int):
    raise NotImplementedError("segflax has no sounds to write")

  def flush(self):
    self._events.flush()

  def close(self):
    self._events.close()

  def _add(self, step: int, **content):
    self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, **content))


def _png(image: np.ndarray) -> bytes:
  if image.dtype != np.uint8:
    image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
  data = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(data, "PNG")
  return data.getvalue()


_module = types.ModuleType("clu.metric_writers.summary_writer")
_module.SummaryWriter = SummaryWriter
sys.modules.setdefault(_module.__name__, _module)

from clu import metric_writers, periodic_actions, profiler  # noqa: E402  After the registration.

MetricWriter = metric_writers.MetricWriter


def create_writer(
  logdir: str | Path | None,
  *,
  asynchronous: bool = True,
  from_step: int = 0,
  metrics: Sequence[str] = (),
) -> metric_writers.MultiWriter:
  """Returns the writer of a run: TensorBoard events in `logdir`, and the log (absl, INFO).

  Args:
    logdir: None: the log only, as on all processes but the first.
    asynchronous: write in the background; errors come up with the next call.
    from_step: of the checkpoint that the run goes on from: TensorBoard forgets later steps.
    metrics: scalar tags that are the results of `write_hparams`.

  Returns:
    An object with write_scalars, write_images, write_texts, write_histograms (all `step, {tag:
    value}`), write_hparams(dict), flush() and close().
  """
  writers = [metric_writers.LoggingWriter()]
  if logdir is not None:
    writers.append(SummaryWriter(str(logdir), from_step=from_step, metrics=metrics))
  kind = metric_writers.AsyncMultiWriter if asynchronous else metric_writers.MultiWriter
  return kind(writers)


class Profile(periodic_actions.Profile):
  """Traces some steps for TensorBoard's profile tab; call it after every step.

  Args:
    logdir: the run's `logs` folder.
    first_step: step after which the trace starts.
    num_steps: steps to trace.
  """

  def __init__(self, logdir: str | Path, *, first_step: int, num_steps: int):
    # CLU's defaults trace for 3 s at least and again each hour: gigabytes on a fast machine.
    super().__init__(
      logdir=str(logdir),
      num_profile_steps=num_steps,
      profile_duration_ms=None,
      first_profile=first_step,
      every_secs=None,
    )

  def close(self):
    """Ends a trace that the end of the run would leave open, and so unwritten."""
    if self._session_running:
      self._end_session(profiler.stop())

"""scripts/predict.py and scripts/export.py: what they write, what they refuse."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from segflax.data.synthetic import generate_walls
from segflax.errors import UserError
from segflax.models.clipseg import CLIPSeg, CLIPSegConfig, init_params, normalize
from segflax.models.pretrained import save_pretrained
from segflax.models.processor import Processor
from segflax.predict import Predictor

SCRIPTS = Path(__file__).parents[1] / "scripts"
PROMPTS = ["segment crack", "segment joint/tape"]


def script(name):
  spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPTS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


predict, export = script("predict"), script("export")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  config = CLIPSegConfig.small(
    image_size=32, width=32, layers=1, taps=(0,), text_width=32, text_layers=1, decoder_mlp=32
  )
  return save_pretrained(
    tmp_path_factory.mktemp("model") / "tiny",
    CLIPSeg(config),
    init_params(config, jax.random.key(1)),
    Processor.byte_level(32),
    thresholds={"segment crack": 0.4},
  )


@pytest.fixture(scope="module")
def predictor(folder):
  return Predictor.from_pretrained(folder)


@pytest.fixture
def run(predictor, monkeypatch):
  """The command, in this process and with the programs that are compiled already."""
  monkeypatch.setattr(Predictor, "from_pretrained", lambda path, **options: predictor)

  def run(output, *pictures, prompts=PROMPTS, options=()):
    prompts = [f"--prompt={prompt}" for prompt in prompts]
    pictures = ["--images", *map(str, pictures)]
    predict.main([f"--model={folder}", f"--output={output}", *prompts, *options, *pictures])

  return run


def save(path, h=32, w=32, seed=0, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
  Image.fromarray(small).resize((w, h)).save(path, **options)
  return path


def test_masks_panels_and_their_names(run, predictor, tmp_path, capsys):
  wall = save(tmp_path / "in" / "wall.1.jpg", 40, 56)
  upright = save(tmp_path / "in" / "b.png", 56, 40, 1)
  turned = tmp_path / "turned.png"
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.open(wall).save(turned, exif=exif)
  (tmp_path / "in" / "notes.txt").write_text("no picture: folders may hold other files")
  run(tmp_path / "out", tmp_path / "in", turned, options=["--overlay", "--batch_size=2"])
  stems = {"b": upright, "wall.1": wall, "turned": turned}
  names = ["segment_crack", "segment_joint_tape", "panel"]
  assert {p.name for p in (tmp_path / "out").iterdir()} == {
    f"{stem}__{name}.png" for stem in stems for name in names
  }
  expected = predictor.masks(predictor(list(stems.values()), PROMPTS))
  for stem, maps in zip(stems, expected, strict=True):
    for name, mask in zip(names, maps.values(), strict=False):
      with Image.open(tmp_path / "out" / f"{stem}__{name}.png") as written:
        assert written.mode == "L" and set(np.unique(written)) <= {0, 255}
        np.testing.assert_array_equal(np.asarray(written), mask)
  with Image.open(tmp_path / "out" / "turned__segment_crack.png") as mask:
    assert mask.size == (40, 56)
  assert len(capsys.readouterr().out.splitlines()) == 3


def test_options_reach_the_predictor(run, predictor, tmp_path):
  wall = save(tmp_path / "wall.png", 70, 90)
  mask = tmp_path / "mask.png"
  Image.fromarray(np.uint8(255) * np.eye(32, dtype=np.uint8)).save(mask)
  support = save(tmp_path / "support.png", seed=3)
  run(tmp_path, wall, prompts=["a"], options=[
    "--negative=b", f"--support=like this={support}={mask}", "--threshold=0", "--tile=none",
  ])  # fmt: skip
  visual = predict.VisualPrompt("like this", support, mask)
  maps = predictor([wall], ["a", visual], negatives=["b"], tile=None)
  expected = predictor.masks(maps, threshold=0)[0]
  for name, key in (("a", "a"), ("like_this", "like this")):
    written = np.asarray(Image.open(tmp_path / f"wall__{name}.png"))
    np.testing.assert_array_equal(written, expected[key])
    assert 0 < written.mean() < 255


def test_collisions_and_bad_input_are_refused(run, tmp_path):
  a, other = save(tmp_path / "x" / "a.png"), save(tmp_path / "y" / "a.jpg")
  masked = save(tmp_path / "x" / "a__segment_crack.png")
  (tmp_path / "empty").mkdir()
  out = tmp_path / "out"
  broken = tmp_path / "broken.jpg"
  broken.write_bytes(a.read_bytes()[:60])
  cases = [
    ((a, other), {}, "also the mask of .*x/a.png"),
    ((a,), {"prompts": ["a b", "a/b"]}, "a__a_b.png"),
    ((a,), {"prompts": ["panel"], "options": ["--overlay"]}, "a__panel.png"),
    ((a, a), {"prompts": []}, "no prompt"),
    ((tmp_path / "empty",), {}, "no pictures"),
    ((tmp_path / "none",), {}, "does not exist"),
    ((a,), {"options": ["--threshold=2"]}, "--threshold 2.0"),
    ((a,), {"options": ["--tile=big"]}, "--tile big"),
    ((a,), {"options": ["--support=x"]}, "NAME=IMAGE=MASK"),
    ((broken,), {}, "broken.jpg"),
  ]
  for pictures, options, message in cases:
    with pytest.raises(UserError, match=message):
      run(out, *pictures, **options)
  with pytest.raises(UserError, match="also the picture"):
    run(tmp_path / "x", a, masked)
  assert not out.exists() or not list(out.iterdir())


def test_errors_are_one_line_and_exit_code_2(tmp_path):
  save(tmp_path / "a.png")
  for command in (
    ["predict.py", "--prompt=a", f"--images={tmp_path / 'a.png'}", f"--output={tmp_path}"],
    ["export.py", f"--output={tmp_path / 'model.jax'}"],
  ):
    result = subprocess.run(
      [sys.executable, SCRIPTS / command[0], *command[1:], f"--model={tmp_path / 'none'}"],
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) == 1
    assert "none" in result.stderr


def test_exported_file_needs_jax_alone(folder, tmp_path, capsys):
  file = tmp_path / "model.jax"
  export.main([f"--model={folder}", f"--output={file}", "--prompt=segment crack"])
  printed = capsys.readouterr().out
  assert "cpu, cuda, tpu" in printed
  row = json.loads(printed[printed.rindex("[") :])
  model, params, processor = export.from_pretrained(folder)
  (tokens,) = processor.tokenize(["segment crack"]).tolist()
  assert row[: len(tokens)] == tokens and len(row) == model.config.max_text_length
  rows = [row, row[:3] + row[-1:] * (len(row) - 3)]
  pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  np.savez(tmp_path / "in.npz", pixels=pixels, tokens=np.int32(rows))
  code = (
    "import sys, jax, numpy as np\n"
    "sys.modules.update(dict.fromkeys(['segflax', 'flax', 'transformers', 'optax', 'orbax']))\n"
    "given = np.load('in.npz')\n"
    "exported = jax.export.deserialize(bytearray(open('model.jax', 'rb').read()))\n"
    "np.save('logits.npy', exported.call(given['pixels'], given['tokens']))\n"
  )
  subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
  tokens = np.broadcast_to(np.int32(rows), (3, 2, len(row)))
  expected = jax.jit(model.apply)({"params": params}, normalize(pixels), tokens)
  logits = np.load(tmp_path / "logits.npy")
  np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_export_refuses_sizes(folder, tmp_path):
  for size, message in ((["30"], "use 32"), (["32", "32", "3"], "has 3 numbers")):
    with pytest.raises(UserError, match=message):
      export.main([f"--model={folder}", f"--output={tmp_path / 'm'}", "--image_size", *size])


def test_large_walls_of_the_benchmark_are_mosaics():
  walls = script("benchmark_tiles").large_walls(2, 32, 2, 3, seed=5)
  parts = [np.asarray(wall["image"]) for wall in generate_walls(12, 32, 5)]
  assert len(walls) == 2 and walls[0][0].shape == (64, 96, 3) and walls[0][1].shape == (64, 96)
  np.testing.assert_array_equal(walls[1][0][32:, 64:], parts[11])
  np.testing.assert_array_equal(walls[0][0][:32, 32:64], parts[1])

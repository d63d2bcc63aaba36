"""The house rules that a machine can hold: who imports whom, no option that nobody reads."""

import ast
import re
from pathlib import Path

import pytest

from configs import baseline
from segflax import config as config_lib

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "segflax").rglob("*.py"))
LEAVES = ("arrays", "errors", "pictures")  # may be imported from everywhere
# These import nothing of segflax outside their own folder.
PURE = ("models", "losses", "metrics", "counts", "data", "visualize")
# These do not import one another.
STRANGERS = ("train_state", "sharding", "optimizer", "checkpoint", "writers", "summary")


def imports(path: Path) -> set[str]:
  """Returns the dotted names of the modules that a file imports anywhere in it."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def rooms(path: Path) -> set[str]:
  """Returns the rooms of segflax (file or folder right below it) that a file imports."""
  own = [name.split(".") for name in imports(path) if name.startswith("segflax.")]
  existing = {p.stem for p in (ROOT / "segflax").iterdir()}
  return {parts[1] for parts in own if parts[1] in existing}


def room(path: Path) -> str:
  return path.relative_to(ROOT / "segflax").parts[0].removesuffix(".py")


def family(name: str) -> str:
  """losses_thin is of losses' room, metrics_thin and skeleton of metrics', and so on."""
  return re.sub(r"_(thin|io)$", "", name).replace("skeleton", "metrics")


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
  here = family(room(path))
  others = {family(name) for name in rooms(path)} - {here, *LEAVES}
  foreign = {name.split(".")[0] for name in imports(path)}
  assert not foreign & {"torch", "tensorflow"}
  if here != "train":
    assert "train" not in others, "only main.py, the scripts and the public API import train"
  if here in PURE:
    assert not others
  if here in STRANGERS:
    assert not others & set(STRANGERS)


# Handed over as a whole: group -> the file whose `config` it then is.
HANDED = {"loss": "losses.py"}


def test_every_config_leaf_is_read_somewhere():
  sources = [*PACKAGE, *sorted((ROOT / "scripts").rglob("*.py")), ROOT / "main.py"]
  text = "\n".join(path.read_text() for path in sources)
  for path in config_lib.flatten(baseline.get_config()):
    assert is_read(path, text), f"nothing reads {path}"


def is_read(path: str, text: str) -> bool:
  """Whether a leaf is read by its path, or its group is handed on as keywords, a dict or itself."""
  group, _, leaf = path.rpartition(".")
  if re.search(rf"\bconfig\.{re.escape(path)}\b", text):
    return True
  if group in HANDED and re.search(rf"\w\(config\.{group}\)", text):
    return bool(re.search(rf"\bconfig\.{leaf}\b", (ROOT / "segflax" / HANDED[group]).read_text()))
  whole = rf"\*\*config\.{group}\b|config\.{group}\.to_dict\(\)"
  return bool(group and re.search(whole, text))


def test_a_leaf_is_not_read_by_its_namesake():
  assert is_read("batch_size", "config.batch_size")
  assert not is_read("eval.batch_size", "config.batch_size")
  assert is_read("eval.batch_size", "config.eval.batch_size")
  assert is_read("loss.name", "make_loss(config.loss)")
  assert not is_read("loss.nome", "make_loss(config.loss)")


def test_no_default_hides_a_misspelt_key():
  for path in PACKAGE:
    assert not re.search(r"config\.get\(|getattr\(config, [^)]*,", path.read_text()), path


@pytest.mark.parametrize(
  "page", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
  path = ROOT / page
  links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
  assert not [link for link in links if not (path.parent / link).exists()]

"""The prompt table, and the mistakes users make with prompts."""

import pytest

from segflax.data.prompts import PromptSet
from segflax.errors import UserError


def test_default_table():
  prompts = PromptSet.create(["taping area", "crack", "stain"])
  assert prompts.prompts == (
    "segment taping area",
    "segment joint/tape",
    "segment drywall seam",
    "segment crack",
    "segment wall crack",
    "segment stain",
  )
  assert prompts.concept_of.tolist() == [0, 0, 0, 1, 1, 2]
  assert prompts.canonical.tolist() == [0, 3, 5]
  assert prompts.of_concept(1).tolist() == [3, 4]
  assert prompts.number("stain") == 2


def test_own_synonyms_and_templates():
  prompts = PromptSet.create(["crack"], {"crack": ["a", "b"]}, ["{}", "photo of {}"])
  assert prompts.prompts == ("a", "b", "photo of a", "photo of b")
  assert prompts.canonical.tolist() == [0]


@pytest.mark.parametrize(
  "synonyms, templates, message",
  [
    ({"crack": ["x", " "]}, ["{}"], "a prompt of 'crack' is empty"),
    ({"crack": []}, ["{}"], "must be a list with at least one text"),
    ({"crack": "segment crack"}, ["{}"], "must be a list with at least one text"),
    ({"crak": ["x"]}, ["{}"], r"names \['crak'\], which the data set does not have"),
    ({"crack": ["x"], "stain": ["x"]}, ["{}"], "'x' asks for 'crack' and 'stain'"),
    ({}, ["photo"], "must hold"),
  ],
)
def test_mistakes_are_named(synonyms, templates, message):
  with pytest.raises(UserError, match=message):
    PromptSet.create(["crack", "stain"], synonyms, templates)


def test_unknown_concept_is_named():
  with pytest.raises(UserError, match="'hole' is none of"):
    PromptSet.create(["crack"]).number("hole")

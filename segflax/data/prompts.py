"""Concepts are what is segmented, prompts are the ways to ask for them."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from segflax.errors import UserError

SYNONYMS = {
  "crack": ("segment crack", "segment wall crack"),
  "taping area": ("segment taping area", "segment joint/tape", "segment drywall seam"),
}


def default_synonyms(concept: str) -> tuple[str, ...]:
  """Returns the built-in prompts of a concept; "segment {concept}" for one that is not known."""
  if concept not in SYNONYMS:
    return (f"segment {concept}",)
  return SYNONYMS[concept]


@dataclasses.dataclass(frozen=True, eq=False)
class PromptSet:
  """The table of every distinct prompt of a data set.

  Attributes:
    concepts: k names; their order is their number.
    prompts: P distinct strings; a prompt id is a row of this table.
    concept_of: `[P]` int32, the concept each prompt asks for.
    canonical: `[k]` int32, the prompt id of each concept's first synonym.
  """

  concepts: tuple[str, ...]
  prompts: tuple[str, ...]
  concept_of: np.ndarray
  canonical: np.ndarray

  @classmethod
  def create(
    cls,
    concepts: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] = ("{}",),
  ) -> "PromptSet":
    """Builds the table: every synonym of every concept, set into every template.

    Args:
      concepts: in the order of their numbers.
      synonyms: concept -> its prompts, the canonical one first; the concepts that it does not
        name keep `default_synonyms`.
      templates: each with one "{}", where the synonym goes, such as "a photo: {}".

    Raises:
      UserError: a prompt is empty or asks for two concepts, a template has no "{}", or
        `synonyms` names a concept that the data set does not have.
    """
    synonyms = dict(synonyms or {})
    if unknown := sorted(set(synonyms) - set(concepts)):
      raise UserError(
        f"prompts.synonyms names {unknown}, which the data set does not have; "
        f"it has {sorted(concepts)}"
      )
    for template in templates:
      if template.count("{}") != 1:
        raise UserError(f'prompt template {template!r} must hold "{{}}" once, for the synonym')
    table: dict[str, int] = {}
    canonical = []
    for number, concept in enumerate(concepts):
      texts = synonyms[concept] if concept in synonyms else default_synonyms(concept)
      if isinstance(texts, str) or not texts:
        raise UserError(f"prompts of {concept!r} must be a list with at least one text: {texts!r}")
      canonical.append(len(table))
      for template in templates:
        for text in texts:
          _add(table, template.replace("{}", text), text, number, concepts)
    return cls(
      tuple(concepts),
      tuple(table),
      np.array(list(table.values()), np.int32),
      np.array(canonical, np.int32),
    )

  def number(self, concept: str) -> int:
    """Returns the number of a concept.

    Raises:
      UserError: the set has no such concept.
    """
    if concept not in self.concepts:
      raise UserError(
        f"concept {concept!r} is none of {list(self.concepts)}; add it to the prompts"
      )
    return self.concepts.index(concept)

  def of_concept(self, concept: int) -> np.ndarray:
    """Returns the ids of the prompts that ask for a concept."""
    return np.flatnonzero(self.concept_of == concept).astype(np.int32)


def _add(table: dict[str, int], prompt: str, text: str, number: int, concepts: Sequence[str]):
  if not text.strip():
    raise UserError(f"a prompt of {concepts[number]!r} is empty; give it words or remove it")
  if prompt in table and table[prompt] != number:
    raise UserError(
      f"prompt {prompt!r} asks for {concepts[table[prompt]]!r} and {concepts[number]!r}; "
      "one prompt asks for one concept"
    )
  table[prompt] = number

"""Pictures that cannot be read: said once, tolerated up to a limit."""

from absl import logging

from segflax.errors import UserError


class SetAside:
  """Unreadable pictures: noted once each, tolerated up to a limit.

  Attributes:
    found: record number -> what was wrong, with the picture's id.
  """

  def __init__(self, limit: int):
    self.found: dict[int, str] = {}
    self._limit = limit

  def add(self, index: int, error: UserError):
    if index not in self.found:  # It comes again in every epoch.
      logging.warning("set aside: %s", error)
    self.found[index] = str(error)  # A dict's item assignment is atomic between threads.

  def check(self):
    """Raises UserError when more pictures were set aside than the limit allows."""
    if len(self.found) > self._limit:
      listed = "\n  ".join(self.found[index] for index in sorted(self.found))
      raise UserError(
        f"{len(self.found)} unreadable pictures, more than the {self._limit} that may be set "
        f"aside (max_corrupt); mend them or prepare the data set anew:\n  {listed}"
      )

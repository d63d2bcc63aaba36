"""The error a user can mend: printed as one sentence, without a traceback, with exit code 2."""


class UserError(ValueError):
  """What the user gave breaks a rule; the message names the value, the rule and the remedy."""

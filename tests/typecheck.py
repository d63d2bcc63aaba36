"""The checker behind every annotation of segflax's numerical modules, while tests run."""

from beartype import BeartypeConf, beartype

# `overlap=0` is a float to PEP 484; beartype has to be told.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))

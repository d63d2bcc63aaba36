#!/bin/bash
# Launches every trial; run it from the root of segflax.
set -e
here=$(dirname "$0")
sky jobs launch --yes --detach-run "$here"/baseline__lr=1e-4.yaml
sky jobs launch --yes --detach-run "$here"/baseline__lr=5e-4.yaml

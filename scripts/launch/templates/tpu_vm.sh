#!/bin/bash
# {{name}}: {{accelerator}} as one Cloud TPU slice ({{hosts}} host(s)). Written by scripts/launch/launch.py.
# Run it where it may stay up (a small VM, tmux). Stopped or preempted: run it again, it resumes.
set -uo pipefail
tpu() { gcloud compute tpus "$@" --project={{project}} --zone={{zone}} --quiet; }
on_every_host() { tpu tpu-vm ssh {{name}} --worker=all --command="$1"; }
state() { tpu queued-resources describe {{name}} --format="value(state.state)" 2>/dev/null; }

while true; do
  case "$(state)" in
    ACTIVE) ;;
    SUSPENDED|FAILED) tpu queued-resources delete {{name}} --force || exit 1 ;;&  # Preempted.
    SUSPENDED|FAILED|"")
      tpu queued-resources create {{name}} --node-id={{name}} --accelerator-type={{accelerator}} \
        --runtime-version={{runtime}}{{spot_flag}} || exit 1 ;;
  esac
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in SUSPENDED|FAILED) continue 2 ;; esac
    sleep 30
  done

  # The same source on every host, the same bucket under {{mount}}; JAX finds the other hosts itself.
  git archive --format=tar.gz --output={{name}}.tar.gz HEAD &&
  tpu tpu-vm scp {{name}}.tar.gz {{name}}:segflax.tar.gz --worker=all &&
  on_every_host {{set_up}} && on_every_host {{run}}
  code=$?
  case $code in
    0) echo "done; now give the slice back: gcloud compute tpus queued-resources delete {{name}} --project={{project}} --zone={{zone}} --force"; exit 0 ;;
    2) echo "bad input, see the message above" >&2; exit 2 ;;
    75) ;;  # Saved itself on SIGTERM.
    *) [ "$(state)" = ACTIVE ] && { echo "failed with exit code $code" >&2; exit "$code"; } ;;
  esac
  sleep 30
done

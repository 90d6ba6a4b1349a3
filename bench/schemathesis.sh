#!/usr/bin/env bash
# At least 5,000 requests that schemathesis makes up from our OpenAPI document, good and bad, against a service of its own:
# no error of the service, no answer that the document does not know.
#
#   python -m venv .venv && .venv/bin/pip install schemathesis
#   cargo build --release
#   bench/schemathesis.sh .venv/bin/schemathesis [examples per operation]
set -euo pipefail
cd "$(dirname "$0")/.."
schemathesis=${1:-schemathesis}
examples=${2:-500}
data=$(mktemp -d)
# Small limits, so that what is accepted is made quickly.
cat >"$data/evanesce.toml" <<'TOML'
listen = "127.0.0.1:0"
data = "data"
[queue]
jobs_max = 20
jobs_per_tenant_max = 20
[limits]
pixels_max = 4096
frames_max = 9
steps_max = 2
TOML
: >"$data/log"
target/release/evanesce serve --config "$data/evanesce.toml" --model "${MODEL:-models/shapes}" 2>"$data/log" &
service=$!
trap 'kill $service 2>/dev/null || true; wait $service || true; rm -rf "$data"' EXIT
until address=$(grep -o 'http://.*' "$data/log"); do
  if ! kill -0 $service 2>/dev/null; then
    echo "the service ended before it listened:" >&2
    cat "$data/log" >&2
    exit 1
  fi
  sleep 0.1
done
# What a request may ask for depends on the checkpoint and the configuration (sizes, lengths, one field on another), which no schema
# says, so that what fits the schema is refused now and then (positive_data_acceptance).
# The stream of all events has no end, so no client may wait for it.
"$schemathesis" run "$address/openapi.json" --url "$address" --exclude-path /v1/events \
    --max-examples "$examples" --phases examples,coverage,fuzzing,stateful --continue-on-failure \
    --exclude-checks positive_data_acceptance --suppress-health-check all --seed 7 --no-color

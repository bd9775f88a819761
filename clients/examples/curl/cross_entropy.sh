#!/bin/sh
# Cross-entropy over HTTP with curl (7.76 or later).
#
#   cross_entropy.sh                              prints the loss of the README's example
#   cross_entropy.sh batch.json                   posts a file, prints the answer
#   cross_entropy.sh batch.safetensors [OPTIONS]  the same in binary; options such as 'reduction=sum&include=loss'
set -eu

url="${LOSSEVAL_URL:-http://127.0.0.1:8000}/v1/cross-entropy"

post() { # content type, data as curl takes it, query
  curl --silent --show-error --fail-with-body --connect-timeout 2 --max-time 10 \
    --header "Content-Type: $1" --header 'Accept: application/json' --header 'X-Request-Timeout: 10' \
    --data-binary "$2" "$url${3:+?$3}"
}

text() { # field, JSON
  printf '%s\n' "$2" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"
}

case "${1-}" in
'') answer=$(post application/json '{
  "logits": [[ 0.3703, -0.1607, -0.7473, -2.2135],
             [ 0.6929, -0.2042, -0.7660, -0.3613],
             [-0.3363,  0.6417,  0.3103,  0.3132]],
  "labels": [0, 1, 2]}') || failed=$? ;;
*.safetensors) answer=$(post application/x-safetensors "@$1" "${2-}") || failed=$? ;;
*) answer=$(post application/json "@$1") || failed=$? ;;
esac

if [ -n "${failed-}" ]; then
  # Whatever goes wrong in the service comes as a problem document (RFC 9457).
  [ -z "$(text title "$answer")" ] || echo "$(text title "$answer"): $(text detail "$answer")" >&2
  [ $# -eq 0 ] || printf '%s\n' "$answer"
  exit 1
elif [ $# -eq 0 ]; then
  printf '%s\n' "$answer" | sed -n 's/.*"loss":"\{0,1\}\([^",]*\).*/\1/p' # NaN and Infinity are strings
else
  printf '%s\n' "$answer"
fi

#!/usr/bin/env bash
# A studio's CI uploads its build with what every runner has: bash, curl and sed. Answers are read as text, which needs
# compact JSON ("key":"value"). Usage: ci_upload.sh API_URL KEY ZIP [NAME] ; the interval is POLL_S (10).
set -euo pipefail
api=$1 key=$2 zip=$3 name=${4:-default}

field() { # of the JSON on stdin, with the escapes that a URL may have undone
  sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" | sed -e 's/\\u0026/\&/g' -e 's/\\\//\//g'
}
ask() { curl --silent --show-error --fail-with-body -H "api-key: $key" "$@"; }

answer=$(ask -X POST "$api/v3/builds/upload-url?name=$name&executable_path=Server.x86_64")
build=$(field build_id <<<"$answer")
url=$(field upload_url <<<"$answer")
[ -n "$build" ] && [ -n "$url" ] || { echo "no upload URL in: $answer" >&2; exit 1; }
curl --silent --show-error --fail-with-body -X PUT -H "Content-Type: application/zip" --data-binary "@$zip" "$url" >&2

for _ in $(seq 60); do
  status=$(ask "$api/v3/builds/$build" | field status)
  case $status in
    ready) echo "$build"; exit 0 ;;
    failed) ask "$api/v3/builds/$build/logs"; exit 1 ;;
  esac
  sleep "${POLL_S:-10}"
done
echo "still $status" >&2
exit 1

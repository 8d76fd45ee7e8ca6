#!/bin/sh
# Type-check every dashboard against Grafana's published schema, in a folder that is gone afterwards.
#
#   tests/conformance/grafana/check.sh
#
# Needs node and npm, and the registry that npm fetches from; where it can't have them it says so and passes.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"

skip() {
    echo "conformance of dashboards SKIPPED: $1"
    exit 0
}

for tool in node npm; do
    command -v "$tool" >/dev/null || skip "no $tool: install Node.js"
done
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$here/tsconfig.json" "$work"
for dashboard in "$here"/../../../monitoring/grafana/*.json; do
    name="$(basename "$dashboard" .json)"
    {
        echo "import type { Dashboard } from '@grafana/schema';"
        echo "export const $(echo "$name" | tr - _): Dashboard ="
        cat "$dashboard"
    } >"$work/$name.ts"
done
cd "$work"
npm install --loglevel=error --no-audit --no-fund >npm.log 2>&1 || skip "npm cannot install what package.json names: $(grep -m 1 . npm.log)"
npx --no-install tsc --project .
echo "$(ls ./*.ts | wc -l) dashboards are as Grafana's schema wants them"

#!/usr/bin/env bash
# Type-check every dashboard against Grafana's published schema, in a folder that is gone afterwards. Needs npm.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
if ! command -v npm >/dev/null; then
  echo "npm is not installed: the dashboards are not checked against Grafana's schema"
  exit 0
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$here/tsconfig.json" "$work"
for dashboard in "$here"/../../../monitoring/grafana/*.json; do
  name="$(basename "$dashboard" .json)"
  {
    echo "import type { Dashboard } from '@grafana/schema';"
    echo "export const ${name//-/_}: Dashboard ="
    cat "$dashboard"
  } >"$work/$name.ts"
done
cd "$work"
npm install --silent --no-audit --no-fund
npx tsc --project .
echo "$(ls ./*.ts | wc -l) dashboards are as Grafana's schema wants them"

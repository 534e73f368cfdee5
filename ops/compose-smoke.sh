#!/usr/bin/env bash
# Bring the Compose stack up, put committed rows through it, and take it down with its data.
# Ends with an error unless every subscription has had every row and all services are healthy.
set -euo pipefail
cd "$(dirname "$0")/.."

export COMPOSE_PROJECT_NAME=cos-events-smoke
if docker compose version >/dev/null 2>&1; then compose="docker compose"; else compose="docker-compose"; fi

finish() {
  status=$?
  if [ $status != 0 ]; then $compose ps -a || true; $compose logs --tail 50 || true; fi
  $compose down -v --timeout 30
  exit $status
}
trap finish EXIT

# Like `curl -f`, which an image or a laptop may lack: prints the status code.
code() {
  python3 - "$@" <<'EOF'
import base64, sys, urllib.error, urllib.request
url, *user = sys.argv[1:]
headers = {"Authorization": "Basic " + base64.b64encode(u.encode()).decode() for u in user}
try:
    print(urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
EOF
}

$compose config -q
${SMOKE_BUILD:-$compose build}
$compose up -d

echo "--- every service is healthy"
for _ in $(seq 90); do
  waiting=$($compose ps -q | xargs docker inspect \
    --format '{{if .State.Health}}{{if ne .State.Health.Status "healthy"}}{{.Name}} {{end}}{{end}}')
  [ -n "${waiting//[$'\n ']/}" ] || break
  sleep 1
done
$compose ps
[ -z "${waiting//[$'\n ']/}" ] || { echo "not healthy: $waiting"; exit 1; }

echo "--- three rows of L1, committed"
for number in 1 2 3; do
  printf '{"event_type": "event_log", "data": {"level": "INFO", "component": "smoke", "message": "row %s"}}\n' $number
done | $compose exec -T subscribers cos-events record -
echo "--- what became of them"
$compose exec -T subscribers cos-events verify --wait 60
$compose exec -T subscribers cos-events verify --json | python3 -c '
import json, sys
had = {each["subscription"]: each["delivered"] for each in json.load(sys.stdin)["subscriptions"]}
sys.exit(had != {"activity": 3, "graph_staging": 3} and f"delivered: {had}")'
$compose exec -T subscribers cos-events status

api=http://127.0.0.1:${API_PORT:-8000} flower=http://127.0.0.1:${FLOWER_PORT:-5555}
[ "$(code "$api/health/ready")" = 200 ]
[ "$(code "$api/debug/messages")" = 404 ]
[ "$(code "$flower/tasks")" = 401 ]
[ "$(code "$flower/tasks" "cos:${FLOWER_PASSWORD:-cos-events}")" = 200 ]
echo "the API is ready, /debug is closed; Flower opens with its password only"

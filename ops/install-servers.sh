#!/bin/sh
# Install PgBouncer and RabbitMQ for tests that start them, and start neither: their ports may be
# those of other servers.
set -eu

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends pgbouncer rabbitmq-server

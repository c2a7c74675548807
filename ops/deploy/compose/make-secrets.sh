#!/bin/bash
# Makes what compose.yaml mounts from ./secrets: a self-signed certificate for localhost, and a first key, whose secret it prints once.
# Needs openssl, and shardctl in the path or in SHARDCTL. The files belong to the user of the containers if root runs this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
shardctl="${SHARDCTL:-shardctl}"
umask 077
mkdir -p secrets/router secrets/nginx
[[ -e secrets/nginx/tls.crt ]] || openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=localhost \
    -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' -keyout secrets/nginx/tls.key -out secrets/nginx/tls.crt 2>/dev/null
[[ -e secrets/router/keys.toml ]] || "$shardctl" key create operator --role read,write,admin --debit '*' --credit '*' --read '*' \
    --file secrets/router/keys.toml
# 10001 runs the routers (Dockerfile), 101 runs nginx (nginx-unprivileged).
if [[ $(id -u) == 0 ]]; then
    chown -R 10001:10001 secrets/router
    chown -R 101:101 secrets/nginx
else
    echo 'not root: give secrets/router to user 10001 and secrets/nginx to user 101 before you start the containers' >&2
fi
